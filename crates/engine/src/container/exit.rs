//! What happens when a container's first process ends: its task is deleted, its network taken down, the
//! restart policy asked, waiters told.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use api_types::RestartPolicy;
use store_api::{Exit, ProcessId, Timestamp};

use super::{
    Container,
    record::{Ended, Record, Status},
};
use crate::{Engine, util::unix_nanos};

/// moby `restartmanager`: 100 ms, doubled up to a minute, reset by a run of ten seconds.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(60);
const BACKOFF_RESET: Duration = Duration::from_secs(10);
/// How long a store that does not answer is asked again before a container is given up.
const WAIT_RETRY: Duration = Duration::from_millis(200);
const WAIT_RETRIES: u32 = 50;

impl Engine {
    /// Waits for the first process in the background.
    pub(crate) fn watch_exit(self: &Arc<Self>, container: Arc<Container>) {
        let engine = self.clone();
        tokio::spawn(async move {
            let exit = engine.await_exit(&container).await;
            engine.on_exit(&container, exit).await;
        });
    }

    async fn await_exit(&self, container: &Container) -> Exit {
        let init = ProcessId::init(container.id.as_str());
        for _ in 0..WAIT_RETRIES {
            match self.services.tasks.wait(&init).await {
                Ok(exit) => return exit,
                Err(error) if error.is_not_found() => break,
                Err(error) => {
                    tracing::warn!(container = %container.id, %error, "waiting for a container failed");
                    tokio::time::sleep(WAIT_RETRY).await;
                }
            }
        }
        // Nobody can tell any more how it ended.
        Exit { status: 255, exited_at: Timestamp::now() }
    }

    pub(crate) async fn on_exit(self: &Arc<Self>, container: &Arc<Container>, exit: Exit) {
        let lifecycle = container.lifecycle.lock().await;
        let Status::Running { started_at, .. } = container.record().status else { return };
        self.stop_health(container);
        let init = ProcessId::init(container.id.as_str());
        if let Err(error) = self.services.tasks.delete(&init).await
            && !error.is_not_found()
        {
            tracing::warn!(container = %container.id, %error, "a task was not deleted");
        }
        self.forget_execs(container);
        self.networks.tear_down(self, container).await;
        let ended = Ended {
            code: i64::from(exit.status),
            at: exit.exited_at,
            oom: container.oom_killed.load(Ordering::Relaxed),
            error: String::new(),
        };
        let ran = unix_nanos(ended.at).saturating_sub(unix_nanos(started_at));
        let ran = Duration::from_nanos(u64::try_from(ran).unwrap_or(0));
        let restart = wants_restart(&container.record(), ended.code) && !self.is_shutting_down();
        let code = ended.code;
        container.update_or_log(|record| {
            record.status = if restart {
                Status::Restarting { started_at, ended }
            } else {
                Status::Exited { started_at: Some(started_at), ended }
            };
        });
        let mut attributes = container.record().attributes();
        attributes.insert("exitCode".into(), code.to_string());
        attributes.insert("execDuration".into(), ran.as_secs().to_string());
        self.events.publish("container", "die", container.id.as_str(), attributes);
        container.progress.send_modify(|progress| {
            progress.running = restart;
            progress.code = code;
            progress.exits += 1;
        });
        if restart {
            self.restart_later(container.clone(), ran);
        } else if container.record().host_config.auto_remove
            && let Err(error) = self.remove_locked(container, true).await
        {
            tracing::warn!(container = %container.id, %error, "a container could not be removed");
        }
        drop(lifecycle);
    }

    /// Starts again after the policy's pause, unless someone stops, starts or removes it meanwhile.
    fn restart_later(self: &Arc<Self>, container: Arc<Container>, ran: Duration) {
        let engine = self.clone();
        tokio::spawn(async move {
            let count = container.record().restart_count;
            let pause = backoff(if ran >= BACKOFF_RESET { 0 } else { count });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = container.cancel_restart.notified() => return,
            }
            let _lifecycle = container.lifecycle.lock().await;
            if !matches!(container.record().status, Status::Restarting { .. }) {
                return;
            }
            container.update_or_log(|record| {
                record.restart_count = if ran >= BACKOFF_RESET { 1 } else { count + 1 };
            });
            if let Err(error) = engine.start_locked(&container).await {
                tracing::warn!(container = %container.id, %error, "restarting a container failed");
            }
        });
    }
}

fn backoff(count: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << count.min(16)).min(BACKOFF_MOST)
}

/// moby `restartmanager.(*RestartManager).ShouldRestart`.
pub(crate) fn wants_restart(record: &Record, code: i64) -> bool {
    if record.manually_stopped {
        return false;
    }
    let RestartPolicy { name, maximum_retry_count } = &record.host_config.restart_policy;
    match name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            code != 0
                && (*maximum_retry_count == 0
                    || i64::from(record.restart_count) < *maximum_retry_count)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        assert_eq!(backoff(0), Duration::from_millis(100));
        assert_eq!(backoff(3), Duration::from_millis(800));
        assert_eq!(backoff(40), Duration::from_secs(60));
    }
}
