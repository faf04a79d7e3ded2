//! Reads all nodes, page by page, and ends whatever the server answers.

use super::KubeError;
use super::client::{Call, Connection, escape};
use super::messages;
use super::node::Node;

/// Nodes per page: with two hundred images on each, a page is 8 MiB.
const PAGE: u32 = 250;
/// Most nodes of a page that a server sends who does not heed this.
const MOST_OF_A_PAGE: usize = 4 * PAGE as usize;
/// Most nodes of a cluster: twenty times what Kubernetes is made for.
const MOST: usize = 100_000;
/// How often to start over when the rest of a list is no longer kept.
const RESTARTS: u32 = 3;

/// Reads all nodes, page by page, and hands each to `take`. Returns what this has gathered, and the version
/// of the list. Where the rest is no longer kept, all are read again, and the pages so far count no more.
pub(super) async fn all<T: Default>(
    connection: &mut Connection,
    mut take: impl FnMut(&mut T, Node),
) -> Result<(T, String), KubeError> {
    let (mut restarts, mut count, mut taken) = (0, 0, T::default());
    let mut rest = String::new();
    loop {
        let page = connection.page(&page(PAGE, &rest), MOST_OF_A_PAGE).await;
        let page = match page {
            Err(KubeError::Gone { .. }) if restarts < RESTARTS && !rest.is_empty() => {
                restarts += 1;
                (count, taken) = (0, T::default());
                rest.clear();
                continue;
            }
            page => page?,
        };
        let messages::ListMeta { version, rest: more } = page.meta.unwrap_or_default();
        count += page.items.len();
        if let Some(problem) = endless(count, page.items.is_empty() && !more.is_empty()) {
            return Err(connection.broken(Call::ListNodes, &problem));
        }
        page.items.into_iter().map(Node::from).for_each(|node| take(&mut taken, node));
        if more.is_empty() {
            return Ok((taken, version));
        }
        rest = more;
    }
}

/// Returns the version of the cluster's newest state.
pub(super) async fn newest(connection: &mut Connection) -> Result<String, KubeError> {
    let list = connection.page(&page(1, ""), MOST_OF_A_PAGE).await?;
    Ok(list.meta.unwrap_or_default().version)
}

/// Tells why a list of `count` nodes so far would never end.
fn endless(count: usize, is_empty: bool) -> Option<String> {
    match count {
        _ if is_empty => Some("a page of the list is empty, and more are announced".to_owned()),
        ..=MOST => None,
        _ => Some(format!("the list has more than {MOST} nodes")),
    }
}

fn page(size: u32, rest: &str) -> String {
    let rest = if rest.is_empty() { String::new() } else { format!("&continue={}", escape(rest)) };
    format!("/api/v1/nodes?limit={size}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends() {
        assert_eq!((endless(MOST, false), endless(0, false)), (None, None));
        assert_eq!(endless(MOST + 1, false).as_deref(), Some("the list has more than 100000 nodes"));
        assert!(endless(250, true).is_some_and(|problem| problem.contains("empty")));
    }
}
