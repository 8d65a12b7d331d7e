//! What happens when a container's first process ends: its task is deleted, its network taken down, the
//! restart policy asked, waiters told.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use api_types::RestartPolicy;
use store_api::{Exit, ProcessId, Timestamp};

use super::{
    Container, StartBy,
    record::{Ended, Record, Status},
};
use crate::{Engine, util::unix_nanos};

/// moby `restartmanager`: 100 ms, doubled up to a minute, reset by a run of ten seconds.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(60);
const BACKOFF_RESET: Duration = Duration::from_secs(10);
/// Pauses between two questions to a store that does not answer. It is asked for as long as it takes: a
/// container that may still run is not given up.
const WAIT_RETRY_FIRST: Duration = Duration::from_millis(100);
const WAIT_RETRY_MOST: Duration = Duration::from_secs(10);

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
        let exit = ask_for_exit(|| self.services.tasks.wait(&init), tokio::time::sleep, &init);
        let exit = exit.await;
        // Nobody can tell any more how it ended.
        exit.unwrap_or_else(|| Exit { status: 255, exited_at: Timestamp::now() })
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
        faults::pass("exit.task");
        self.forget_execs(container);
        self.networks.tear_down(self, container).await;
        self.unmount_shm(&container.id);
        self.unmount_volumes(container.id.as_str()).await;
        self.volume_use_events(&container.snapshot(), false);
        faults::pass("exit.down");
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
        let end = |record: &mut Record| {
            record.status = if restart {
                Status::Restarting { started_at, ended }
            } else {
                Status::Exited { started_at: Some(started_at), ended }
            };
        };
        let tell = |record: &Record| {
            let mut attributes = record.attributes();
            attributes.insert("exitCode".into(), code.to_string());
            attributes.insert("execDuration".into(), ran.as_secs().to_string());
            self.events.publish("container", "die", container.id.as_str(), attributes);
        };
        container.update_end(end, tell, 1);
        faults::pass("exit.recorded");
        if restart {
            self.restart_later(container.clone(), ran);
        } else if !container.is_restarted()
            && container.record().host_config.auto_remove
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
            let Ok(_lifecycle) = container.lock_live(container.id.as_str()).await else { return };
            if !matches!(container.record().status, Status::Restarting { .. }) {
                return;
            }
            container.update_or_log(|record| {
                record.restart_count =
                    if ran >= BACKOFF_RESET { 1 } else { count.saturating_add(1) };
            });
            if let Err(error) = engine.start_locked(&container, StartBy::Policy).await {
                tracing::warn!(container = %container.id, %error, "restarting a container failed");
            }
        });
    }
}

/// Asks until the store knows how the process ended, or that it knows no such process (`None`).
pub(super) async fn ask_for_exit<F, S>(
    mut ask: impl FnMut() -> F,
    mut sleep: impl FnMut(Duration) -> S,
    process: &ProcessId,
) -> Option<Exit>
where
    F: Future<Output = store_api::Result<Exit>>,
    S: Future<Output = ()>,
{
    let id = &process.container_id;
    let mut pause = WAIT_RETRY_FIRST;
    loop {
        match ask().await {
            Ok(exit) => return Some(exit),
            Err(error) if error.is_not_found() => return None,
            Err(error) if pause == WAIT_RETRY_FIRST => {
                tracing::warn!(container = %id, %error, "waiting for a container failed; asking again");
            }
            Err(error) => tracing::debug!(container = %id, %error, "waiting failed again"),
        }
        sleep(pause).await;
        pause = pause.saturating_mul(2).min(WAIT_RETRY_MOST);
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
    #![allow(clippy::unwrap_used)]
    use store_api::Error;
    use types::ErrorKind;

    use super::*;

    /// Answers `failures` times that it cannot, then with `last`; how long the asking took.
    async fn asked(failures: u32, last: store_api::Result<Exit>) -> (Option<Exit>, Duration) {
        let mut left = failures;
        let slept = std::cell::Cell::new(Duration::ZERO);
        let ask = || {
            let answer = if left == 0 {
                last.clone()
            } else {
                left -= 1;
                Err(Error::new(ErrorKind::Unavailable, "the store is away"))
            };
            std::future::ready(answer)
        };
        let sleep = |pause: Duration| {
            slept.set(slept.get() + pause);
            std::future::ready(())
        };
        (ask_for_exit(ask, sleep, &ProcessId::init("some")).await, slept.get())
    }

    #[tokio::test]
    async fn a_store_that_is_away_for_long_does_not_end_a_container() {
        let exit = Exit { status: 7, exited_at: Timestamp::now() };
        let (found, took) = asked(500, Ok(exit)).await;
        assert_eq!(found.unwrap().status, 7);
        // Bounded rate: about one question in ten seconds.
        assert!(took > Duration::from_secs(4000) && took < Duration::from_secs(5000), "{took:?}");
        let gone = Err(Error::new(ErrorKind::NotFound, "no such task"));
        assert!(asked(3, gone).await.0.is_none());
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        assert_eq!(backoff(0), Duration::from_millis(100));
        assert_eq!(backoff(3), Duration::from_millis(800));
        assert_eq!(backoff(40), Duration::from_secs(60));
    }
}
