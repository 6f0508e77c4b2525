//! Events that keep coming at a pace, until told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::records::{Event, Writer};
use crate::wait::{Deadline, let_pass};

/// Events that keep coming.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    sending: Option<std::thread::JoinHandle<u32>>,
}

impl Load {
    /// Starts to write the numbers from zero on.
    pub(crate) fn start(writer: Writer, per_second: u32, keys: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sending = std::thread::spawn(move || {
            let began = Deadline::after(Duration::ZERO);
            let mut sent: u32 = 0;
            while !stopped.load(Ordering::Relaxed) {
                let due = began.elapsed().as_secs_f64() * f64::from(per_second);
                while f64::from(sent) < due {
                    let key = format!("key-{}", sent % keys);
                    writer.write(&Event::of(key, sent.to_string()));
                    sent += 1;
                }
                // The pace of the load.
                let_pass(Duration::from_millis(5));
            }
            assert_eq!(writer.flush(), u64::from(sent));
            sent
        });
        Self {
            stop,
            sending: Some(sending),
        }
    }

    /// Ends it; every event is stored. Tells how many there were.
    pub fn stop(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let sending = self.sending.take().expect("it is stopped once");
        sending.join().expect("the load is stored")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
