//! How fast layers move, computed from what an engine tells of their bytes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use api_types::JsonMessage;

use crate::fmt::units;

/// A rate is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(5);
/// Samples are at least as far from each other.
const STEP: Duration = Duration::from_millis(100);
/// What moved for less than this has no rate yet.
const SHORTEST: Duration = Duration::from_millis(500);
/// Layers that are counted; an image has fewer.
const LAYERS_MAX: usize = 1024;

/// Bytes over the last seconds.
#[derive(Debug, Default)]
struct Window(VecDeque<(Duration, i64)>);

impl Window {
    fn add(&mut self, now: Duration, bytes: i64) {
        if self.0.back().is_none_or(|(last, _)| now >= *last + STEP) {
            self.0.push_back((now, bytes));
        }
        while self.0.len() > 2 && self.0[1].0 + WINDOW < now {
            self.0.pop_front();
        }
    }

    /// Bytes per second, once there is enough to tell.
    fn rate(&self, now: Duration, bytes: i64) -> Option<i64> {
        let first = self.0.front()?;
        per_second(bytes - first.1, now.checked_sub(first.0)?)
    }
}

fn per_second(bytes: i64, time: Duration) -> Option<i64> {
    let millis = i64::try_from(time.as_millis()).ok()?;
    (time >= SHORTEST && bytes >= 0).then(|| bytes.saturating_mul(1000) / millis)
}

#[derive(Debug, Default)]
struct Layer {
    status: String,
    /// Of the present status.
    window: Window,
    /// Bytes that were there when it began to move over the network, that are there, and of all.
    from: i64,
    current: i64,
    total: i64,
    is_done: bool,
}

/// The layers of one pull or push.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    layers: HashMap<String, Layer>,
    window: Window,
    began: Option<Duration>,
    ended: Option<Duration>,
}

impl Rates {
    /// Takes note of a layer's message; answers its bytes per second. `now` counts from any moment.
    pub(crate) fn note(&mut self, m: &JsonMessage, now: Duration) -> Option<i64> {
        let detail = m.progress_detail.as_ref()?;
        if self.layers.len() >= LAYERS_MAX && !self.layers.contains_key(&m.id) {
            return None;
        }
        let transfers = matches!(m.status.as_str(), "Downloading" | "Pushing");
        let layer = self.layers.entry(m.id.clone()).or_default();
        let has_moved = layer.total > 0;
        if layer.status != m.status {
            layer.status.clone_from(&m.status);
            layer.window = Window::default();
        }
        let counts = detail.units.is_empty() && detail.total > 0;
        if counts {
            layer.window.add(now, detail.current);
        }
        let rate = layer
            .window
            .rate(now, detail.current)
            .filter(|_| counts && detail.current < detail.total);
        match m.status.as_str() {
            _ if transfers && counts => {
                if !has_moved {
                    layer.from = detail.current;
                }
                (layer.current, layer.total) = (detail.current, detail.total);
                layer.is_done = false;
                self.began.get_or_insert(now);
                self.ended = None;
            }
            "Verifying Checksum" | "Download complete" | "Extracting" | "Pull complete"
            | "Pushed"
                if has_moved =>
            {
                layer.current = layer.total;
                layer.is_done = true;
            }
            "Already exists" | "Layer already exists" if !has_moved => {
                self.layers.remove(&m.id);
            }
            status if status.starts_with("Mounted from") => {
                self.layers.remove(&m.id);
            }
            _ => {}
        }
        if self.began.is_some() {
            self.window.add(now, self.moved());
            if self.ended.is_none() && self.layers.values().all(|layer| layer.is_done) {
                self.ended = Some(now);
            }
        }
        rate
    }

    fn moved(&self) -> i64 {
        self.layers.values().map(|layer| layer.current - layer.from).sum()
    }

    /// `2 of 5 layers, 45.2MB/120.1MB, 12.3MB/s`; once all are here, how long it took. `None` as long as
    /// nothing moves. Layers whose size was not told yet are not in the sizes.
    pub(crate) fn total(&self, now: Duration) -> Option<String> {
        let began = self.began?;
        let (all, done) = (self.layers.len(), self.layers.values().filter(|l| l.is_done).count());
        let current: i64 = self.layers.values().map(|layer| layer.current).sum();
        let total: i64 = self.layers.values().map(|layer| layer.total).sum();
        let word = if all == 1 { "layer" } else { "layers" };
        let (text, rate) = match self.ended {
            Some(ended) => {
                let time = ended - began;
                let text = format!(
                    "{all} {word}, {} in {:.1}s",
                    units::size4(self.moved()),
                    time.as_secs_f64()
                );
                (text, per_second(self.moved(), time))
            }
            None => {
                let (current, total) = (units::size4(current), units::size4(total));
                let text = format!("{done} of {all} {word}, {current}/{total}");
                (text, self.window.rate(now, self.moved()))
            }
        };
        let rate = rate.map(|rate| format!(", {}/s", units::size4(rate))).unwrap_or_default();
        Some(text + &rate)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(id: &str, status: &str, bytes: Option<(i64, i64)>) -> JsonMessage {
        let (current, total) = bytes.unwrap_or_default();
        JsonMessage {
            id: id.into(),
            status: status.into(),
            progress_detail: Some(api_types::ProgressDetail {
                current,
                total,
                ..Default::default()
            }),
            ..JsonMessage::default()
        }
    }

    #[test]
    fn rates_and_totals() {
        let ms = Duration::from_millis;
        let mut rates = Rates::default();
        for id in ["a", "b", "c"] {
            assert_eq!(rates.note(&message(id, "Pulling fs layer", None), ms(0)), None);
        }
        rates.note(&message("c", "Already exists", None), ms(0));
        assert_eq!(rates.total(ms(0)), None);
        let at = |n| Some((n, 10_000_000));
        assert_eq!(rates.note(&message("a", "Downloading", at(0)), ms(1000)), None);
        assert_eq!(rates.note(&message("a", "Downloading", at(50_000)), ms(1050)), None);
        let rate = rates.note(&message("a", "Downloading", at(2_000_000)), ms(2000));
        assert_eq!(rate, Some(2_000_000));
        assert_eq!(rates.total(ms(2000)).unwrap(), "0 of 2 layers, 2MB/10MB, 2MB/s");
        // What was there before does not count as having moved.
        rates.note(&message("b", "Downloading", Some((4_000_000, 5_000_000))), ms(2000));
        rates.note(&message("b", "Downloading", Some((5_000_000, 5_000_000))), ms(3000));
        rates.note(&message("b", "Download complete", None), ms(3000));
        assert_eq!(rates.total(ms(3000)).unwrap(), "1 of 2 layers, 7MB/15MB, 1.5MB/s");
        // It is the rate of the last seconds, not of all.
        let mut rate = None;
        for second in 4..14 {
            let current = 2_000_000 + (second - 3) * 100_000;
            rate = rates.note(&message("a", "Downloading", at(current)), ms(second as u64 * 1000));
        }
        assert_eq!(rate, Some(100_000));
        rates.note(&message("a", "Verifying Checksum", None), ms(21_000));
        assert_eq!(rates.total(ms(30_000)).unwrap(), "2 layers, 11MB in 20.0s, 550kB/s");
        assert_eq!(rates.note(&message("a", "Extracting", Some((1, 9))), ms(22_000)), None);
        rates.note(&message("a", "Pull complete", None), ms(23_000));
        assert_eq!(rates.total(ms(30_000)).unwrap(), "2 layers, 11MB in 20.0s, 550kB/s");
    }

    #[test]
    fn many_messages_take_little_room() {
        let mut window = Window::default();
        for n in 0..100_000 {
            window.add(Duration::from_millis(n), i64::try_from(n).unwrap());
        }
        assert!(window.0.len() < 60, "{}", window.0.len());
        assert_eq!(window.rate(Duration::from_millis(99_999), 99_999), Some(1000));
    }
}
