//! Gauges of what is under way.

use prometheus::IntGauge;

/// Increments a gauge until it is dropped, also when its future is cancelled.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl InFlight {
    /// Increments the gauge.
    pub fn enter(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn in_flight_decrements_when_its_future_is_cancelled() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let inside = gauge.clone();
        let held = tokio::spawn(async move {
            let _guard = InFlight::enter(&inside);
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(gauge.get(), 1);
        held.abort();
        let _ = held.await;
        assert_eq!(gauge.get(), 0);
    }
}
