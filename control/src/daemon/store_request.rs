//! The request to the store that is under way, beside the loop: a store that hangs must not keep the node
//! from its other work.

use std::pin::Pin;
use std::sync::Arc;

use store::{Store, Wish};

use super::error::DaemonError;
use super::reconciler::{Answer, Request};
use super::wait_for_store::{self, Trust};
use crate::serve::board::Board;
use crate::settings::Settings;

/// The request under way, if there is one.
#[derive(Default)]
pub(super) struct StoreRequest {
    request: Option<Pin<Box<dyn Future<Output = Answer>>>>,
}

impl StoreRequest {
    /// Starts a request in the place of one under way.
    pub(super) fn start(&mut self, request: Request, store: &Store, board: &Arc<Board>, settings: &Settings) {
        let (store, board) = (store.clone(), Arc::clone(board));
        let settings = settings.clone();
        self.request = Some(Box::pin(carry_out(request, store, board, settings)));
    }

    /// Waits for the answer, forever while nothing is asked. Nothing is lost if the wait is dropped half-way.
    pub(super) async fn answer(&mut self) -> Answer {
        let Some(request) = &mut self.request else { return std::future::pending().await };
        let answer = request.await;
        self.request = None;
        answer
    }
}

async fn carry_out(request: Request, store: Store, board: Arc<Board>, settings: Settings) -> Answer {
    match request {
        Request::Confirm { config, wished, key } => {
            match wait_for_store::network_config(&store, &settings, Trust::Memory).await {
                Ok((_, stored)) if stored != config => return Answer::Reconfigured,
                Ok(_) => {}
                Err(error) => return Answer::Confirmed(Err(error)),
            }
            let wish = Wish { config: &config, attrs: wished, previous: Some(key), former: None };
            let lease = wait_for_store::first_lease(&store, &wish, Trust::Memory);
            Answer::Confirmed(board.timed("acquire", lease).await.map_err(DaemonError::from))
        }
        Request::Renew(own) => Answer::Renewed(board.timed("renew", store.renew(&own)).await),
        Request::Acquire { config, wished, key, give_back } => {
            if let Some(other) = give_back {
                // Nobody uses it; if the store does not answer it runs out.
                let _ = store.remove(&other).await;
            }
            let wish = Wish { config: &config, attrs: wished, previous: Some(key), former: None };
            Answer::Acquired(board.timed("acquire", store.acquire(&wish)).await)
        }
        Request::Publish { own, wished } => Answer::Published(store.update(&own, &wished).await),
    }
}
