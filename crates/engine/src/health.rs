//! Health checks: a command run in the container at intervals (moby `daemon/health.go`).

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::Duration,
};

use api_types::{ExecCreate, Health, HealthConfig, HealthcheckResult, StrSlice};
use store_api::Timestamp;
use tokio::task::JoinHandle;

use crate::{Engine, container::Container, util::rfc3339};

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Results that inspect shows.
const LOG_ENTRIES: usize = 5;
/// Bytes of output that are kept of a check.
const OUTPUT_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    None,
    Starting,
    Healthy,
    Unhealthy,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

#[derive(Default)]
pub(crate) struct HealthState {
    verdict: Verdict,
    failing_streak: u32,
    log: VecDeque<HealthcheckResult>,
    monitor: Option<JoinHandle<()>>,
}

/// A container's check with docker's defaults filled in.
struct Plan {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

fn plan(config: &api_types::Config) -> Option<Plan> {
    let check: &HealthConfig = config.healthcheck.as_ref()?;
    let (kind, rest) = check.test.split_first()?;
    let command = match kind.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => {
            let shell = config.shell.as_ref().filter(|shell| !shell.0.is_empty());
            let mut words = shell
                .map_or_else(|| vec!["/bin/sh".to_string(), "-c".into()], |shell| shell.0.clone());
            words.push(rest.join(" "));
            words
        }
        _ => return None,
    };
    let or = |nanos: i64, default: Duration| match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
        _ => default,
    };
    Some(Plan {
        command,
        interval: or(check.interval, INTERVAL),
        timeout: or(check.timeout, TIMEOUT),
        start_period: or(check.start_period, Duration::ZERO),
        start_interval: or(check.start_interval, START_INTERVAL),
        retries: u32::try_from(check.retries).ok().filter(|n| *n > 0).unwrap_or(RETRIES),
    })
}

impl Engine {
    /// Begins to check a container that has a check, once its process runs.
    pub(crate) fn start_health(self: &Arc<Self>, container: &Arc<Container>) {
        let Some(plan) = plan(&container.record().config) else { return };
        let (engine, owner) = (self.clone(), container.clone());
        let monitor = tokio::spawn(async move { engine.monitor(&owner, &plan).await });
        let mut state = container.health.lock().unwrap_or_else(PoisonError::into_inner);
        state.verdict = Verdict::Starting;
        state.failing_streak = 0;
        state.log.clear();
        if let Some(old) = state.monitor.replace(monitor) {
            old.abort();
        }
    }

    pub(crate) fn stop_health(&self, container: &Container) {
        let mut state = container.health.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(monitor) = state.monitor.take() {
            monitor.abort();
            state.verdict = Verdict::Unhealthy;
        }
    }

    async fn monitor(self: &Arc<Self>, container: &Arc<Container>, plan: &Plan) {
        let begun = tokio::time::Instant::now();
        loop {
            let starting = begun.elapsed() < plan.start_period && {
                let state = container.health.lock().unwrap_or_else(PoisonError::into_inner);
                state.verdict == Verdict::Starting
            };
            tokio::time::sleep(if starting { plan.start_interval } else { plan.interval }).await;
            // A paused container answers nothing, and is no less healthy for it.
            if matches!(
                container.record().status,
                crate::container::record::Status::Running { paused: true, .. }
            ) {
                continue;
            }
            let start = Timestamp::now();
            let request = ExecCreate {
                cmd: StrSlice(plan.command.clone()),
                attach_stdout: true,
                attach_stderr: true,
                ..ExecCreate::default()
            };
            let run = self.exec_collect(container, request, OUTPUT_BYTES, plan.timeout).await;
            let (output, code) = match run {
                Ok((output, Some(code))) => (output, code),
                Ok((_, None)) => {
                    let text = format!("Health check exceeded timeout ({:?})", plan.timeout);
                    (text.into_bytes(), -1)
                }
                Err(error) => (error.message.into_bytes(), -1),
            };
            let result = HealthcheckResult {
                start: rfc3339(Some(start)),
                end: rfc3339(Some(Timestamp::now())),
                exit_code: code,
                output: String::from_utf8_lossy(&output).into_owned(),
            };
            let grace = begun.elapsed() < plan.start_period;
            self.record_health(container, plan, result, grace);
        }
    }

    fn record_health(
        &self,
        container: &Container,
        plan: &Plan,
        result: HealthcheckResult,
        grace: bool,
    ) {
        let healthy = result.exit_code == 0;
        let changed = {
            let mut state = container.health.lock().unwrap_or_else(PoisonError::into_inner);
            let before = state.verdict;
            if healthy {
                state.failing_streak = 0;
                state.verdict = Verdict::Healthy;
            } else if !(grace && before == Verdict::Starting) {
                state.failing_streak = state.failing_streak.saturating_add(1);
                if state.failing_streak >= plan.retries {
                    state.verdict = Verdict::Unhealthy;
                }
            }
            if state.log.len() == LOG_ENTRIES {
                state.log.pop_front();
            }
            state.log.push_back(result);
            (state.verdict != before).then_some(state.verdict)
        };
        if let Some(verdict) = changed {
            self.container_event(container, &format!("health_status: {}", verdict.name()));
        }
    }

    /// As inspect shows it; `None` for a container without a check.
    pub(crate) fn health_shape(&self, container: &Container) -> Option<Health> {
        let state = container.health.lock().unwrap_or_else(PoisonError::into_inner);
        (state.verdict != Verdict::None).then(|| Health {
            status: state.verdict.name().into(),
            failing_streak: i64::from(state.failing_streak),
            log: state.log.iter().cloned().collect(),
        })
    }
}
