//! Runs the broker alone, to try clients against it: `serve [port] [folder]`.

use std::error::Error;
use std::io::Read as _;

use millrace_broker::{Broker, Listen, Options};

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().map_or(Ok(9092), |port| port.parse())?;
    let mut options = match arguments.next() {
        Some(folder) => Options::files(folder),
        None => Options::memory(),
    };
    options.listen = Listen::Preferred(port);
    let broker = Broker::start(options)?;
    tracing::info!(bootstrap = %broker.bootstrap(), "end the input to stop");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    broker.shutdown()?;
    Ok(())
}
