//! Connections to endpoints, whose names are resolved on threads of their own.
//!
//! The connector's usual resolver takes its threads from tokio's pool, which panics where none can be
//! started: the watch of the leases would be gone.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use crate::aside;

/// The system's resolver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolver;

/// Returns what opens connections, as tonic sets it up.
pub(super) fn connector(patience: Duration) -> HttpConnector<Resolver> {
    let mut connector = HttpConnector::new_with_resolver(Resolver);
    // Otherwise it rejects https, which is added around it.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(patience));
    connector
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            // The connector puts the port in place of 0.
            aside::run("resolver", move || (name.as_str(), 0).to_socket_addrs()).await?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_and_unknown_ones_are_errors() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let mut found = Resolver.call(name("localhost")).await.expect("addresses");
        assert!(found.all(|address| address.ip().is_loopback()));
        assert!(Resolver.call(name("no-such-host.invalid")).await.is_err());
    }
}
