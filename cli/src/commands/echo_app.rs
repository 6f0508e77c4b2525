//! `millrace echo-app`: an app that answers every event with itself.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;

use crate::Ending;
use crate::bench::echo;
use crate::screen::Screen;

/// Answer every event with itself, single and batch: for benches and first steps
#[derive(Args, Debug)]
#[command(
    hide = true,
    after_help = "\
Example:
  millrace echo-app --listen 127.0.0.1:8080"
)]
pub struct Arguments {
    /// Where to listen; port 0 is any free one
    #[arg(long, env = "MILLRACE_ECHO_LISTEN")]
    listen: Option<SocketAddr>,
    /// Port, as `millrace dev` gives it to an app
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Address, as `millrace dev` gives it to an app
    #[arg(long, env = "HOST", default_value = "127.0.0.1")]
    host: std::net::IpAddr,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let address = arguments
        .listen
        .unwrap_or(SocketAddr::new(arguments.host, arguments.port));
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    screen.print(&format!("http://{}\n", listener.local_addr()?))?;
    tokio::select! {
        served = echo::serve(listener) => served.context("cannot accept connections")?,
        ended = super::asked_to_stop() => ended?,
    }
    Ok(Ending::Ok)
}
