#![allow(clippy::unwrap_used)]
use super::*;

/// A layer's failure closes the way on which its arrival is told, which may be seen before the failure.
#[test]
fn the_cause_is_told_and_not_what_followed() {
    let followed = || Error::new(ErrorKind::Cancelled, "the pull was given up");
    let (failed, mut failures) = mpsc::channel(2);
    assert_eq!(cause(&mut failures, None, followed()).kind, ErrorKind::Cancelled);
    let found = || Some(Fail::data_loss("another content"));
    assert_eq!(cause(&mut failures, found(), followed()).kind, ErrorKind::DataLoss);
    failed.try_send(Error::new(ErrorKind::Unauthenticated, "no credentials")).unwrap();
    drop(failed);
    assert_eq!(cause(&mut failures, found(), followed()).kind, ErrorKind::Unauthenticated);
    assert_eq!(cause(&mut failures, None, followed()).kind, ErrorKind::Cancelled);
}
