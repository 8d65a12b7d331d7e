use std::sync::Arc;

use api_types::{WaitError, WaitResponse};
use tokio::sync::watch;

use super::{Container, Progress};
use crate::{Engine, Error, Result};

/// What `POST /containers/{id}/wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCondition {
    NotRunning,
    NextExit,
    Removed,
}

impl std::str::FromStr for WaitCondition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            _ => Err(Error::invalid(format!("invalid condition: \"{text}\""))),
        }
    }
}

/// A wait that has begun: whatever happens from now on is seen.
pub struct Waiter {
    progress: watch::Receiver<Progress>,
    condition: WaitCondition,
    exits_before: u64,
    _container: Arc<Container>,
}

impl Waiter {
    /// Ends when the condition holds; there is no other bound, as the API says.
    pub async fn wait(mut self) -> WaitResponse {
        let (condition, before) = (self.condition, self.exits_before);
        let done = |progress: &Progress| match condition {
            WaitCondition::NotRunning => !progress.running || progress.removed,
            WaitCondition::NextExit => progress.exits > before || progress.removed,
            WaitCondition::Removed => progress.removed,
        };
        match self.progress.wait_for(done).await {
            Ok(progress) => response(&progress),
            Err(_) => WaitResponse {
                status_code: -1,
                error: Some(WaitError { message: "the engine let go of the container".into() }),
            },
        }
    }
}

fn response(progress: &Progress) -> WaitResponse {
    // A removal that succeeds leaves nothing to tell of (moby `State.SetRemoved`); with an error docker's
    // command line would report a wait that failed.
    let error = (!progress.removed && !progress.error.is_empty())
        .then(|| WaitError { message: progress.error.clone() });
    WaitResponse { status_code: progress.code, error }
}

impl Engine {
    /// Begins to wait for a container.
    pub fn wait(&self, name: &str, condition: WaitCondition) -> Result<Waiter> {
        let container = self.containers.find(name)?;
        let progress = container.progress.subscribe();
        let exits_before = progress.borrow().exits;
        Ok(Waiter { progress, condition, exits_before, _container: container })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_failed_start_does_not_outlive_the_container() {
        let mut progress =
            Progress { code: 127, error: "no such file".into(), ..Progress::default() };
        assert!(response(&progress).error.is_some());
        progress.removed = true;
        assert_eq!(response(&progress), WaitResponse { status_code: 127, error: None });
    }
}
