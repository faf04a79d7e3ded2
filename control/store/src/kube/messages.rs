//! The parts of Kubernetes' protocol buffers that are needed, by their field numbers in `generated.proto` of
//! `k8s.io/api/core/v1` and `k8s.io/apimachinery/pkg/{runtime,apis/meta/v1}`. All other fields are skipped
//! without being stored: a node's status is most of the node.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Most pod CIDRs of a node that are not too many: a cluster has two.
const MOST_CIDRS: usize = 8;

/// What an encoded object begins with.
const MAGIC: &[u8] = b"k8s\0";

/// `runtime.Unknown`: the frame of every object.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Unknown {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<TypeMeta>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) raw: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TypeMeta {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(string, tag = "2")]
    pub(crate) kind: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ObjectMeta {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "5")]
    pub(crate) uid: String,
    #[prost(string, tag = "6")]
    pub(crate) version: String,
    #[prost(btree_map = "string, string", tag = "12")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Node {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<NodeSpec>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct NodeSpec {
    #[prost(string, tag = "1")]
    pub(crate) pod_cidr: String,
    #[prost(string, repeated, tag = "7")]
    pub(crate) pod_cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct NodeList {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<ListMeta>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) items: Vec<Node>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ListMeta {
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(string, tag = "3")]
    pub(crate) rest: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Pod {
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<PodSpec>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct PodSpec {
    #[prost(string, tag = "10")]
    pub(crate) node_name: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Status {
    #[prost(string, tag = "3")]
    pub(crate) message: String,
    #[prost(string, tag = "4")]
    pub(crate) reason: String,
    #[prost(int32, tag = "6")]
    pub(crate) code: i32,
}

/// One event of a watch. Its object is framed like every other.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct WatchEvent {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) object: Option<RawExtension>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) raw: Bytes,
}

/// Decodes a framed object; `None` if it is none, or broken.
pub(super) fn decode<M: Message + Default>(mut framed: Bytes) -> Option<M> {
    if !framed.starts_with(MAGIC) {
        return None;
    }
    let unknown = Unknown::decode(framed.split_off(MAGIC.len())).ok()?;
    M::decode(unknown.raw).ok()
}

/// Counts the nodes of a framed list before any is decoded: an empty one has two bytes here, and a hundred
/// decoded. Pod CIDRs, which are as small, count as nodes too where there are more of them than there may be.
/// `None` if it is none, or broken.
pub(super) fn nodes_of(framed: &Bytes) -> Option<usize> {
    let unknown = Unknown::decode(framed.strip_prefix(MAGIC)?).ok()?;
    let (nodes, cidrs) = (count(&unknown.raw, &[2])?, count(&unknown.raw, &[2, 2, 7])?);
    Some(nodes.max(cidrs / MOST_CIDRS))
}

/// Counts the fields at a path of numbers, all but the last of which are messages.
fn count(mut message: &[u8], path: &[u32]) -> Option<usize> {
    let (&wanted, deeper) = path.split_first()?;
    let mut found = 0;
    while !message.is_empty() {
        let (number, kind) = decode_key(&mut message).ok()?;
        if number != wanted || kind != WireType::LengthDelimited {
            skip_field(kind, number, &mut message, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
        let (field, rest) = message.split_at_checked(length)?;
        message = rest;
        found += if deeper.is_empty() { 1 } else { count(field, deeper)? };
    }
    Some(found)
}

/// Encodes an object with its frame.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn encode(version: &str, kind: &str, message: &impl Message) -> Vec<u8> {
    let meta = TypeMeta { version: version.to_owned(), kind: kind.to_owned() };
    let unknown = Unknown { meta: Some(meta), raw: message.encode_to_vec().into() };
    [MAGIC, &unknown.encode_to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::kube::client::{frame, take};

    /// Returns what Kubernetes' own code has written.
    fn golden(name: &str) -> Bytes {
        let lines = include_str!("golden.txt").lines();
        let text = lines.filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name);
        let digits = text.expect(name).1.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16);
        digits.map(|pair| byte(pair).expect("a byte")).collect()
    }

    fn is_the_node(node: &Node, name: &str) {
        let meta = node.meta.as_ref().expect("metadata");
        assert_eq!((meta.name.as_str(), meta.version.as_str()), (name, "4711"));
        assert_eq!(meta.uid, "0d5bd4a5-0000-4000-8000-000000000001");
        let data = &meta.annotations["flannel.alpha.coreos.com/backend-data"];
        assert_eq!(
            (data.as_str(), meta.annotations.len()),
            (r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, 2)
        );
        let spec = node.spec.as_ref().expect("a spec");
        assert_eq!((spec.pod_cidr.as_str(), spec.pod_cidrs.len()), ("10.244.1.0/24", 2));
    }

    #[test]
    fn what_kubernetes_writes_is_read() {
        is_the_node(&decode(golden("node")).expect("a node"), "n1");
        let list: NodeList = decode(golden("list")).expect("a list");
        let meta = list.meta.expect("metadata");
        assert_eq!((meta.version.as_str(), meta.rest.as_str()), ("4712", "eyJ2IjoibWV0YSJ9"));
        list.items.iter().zip(["n1", "n2"]).for_each(|(node, name)| is_the_node(node, name));
        let pod: Pod = decode(golden("pod")).expect("a pod");
        assert_eq!(pod.spec.expect("a spec").node_name, "n1");
        let status: Status = decode(golden("status")).expect("a status");
        let text = (status.message.as_str(), status.reason.as_str(), status.code);
        assert_eq!(text, (r#"nodes "n1" not found"#, "NotFound", 404));
    }

    /// In whatever pieces it arrives.
    #[test]
    fn a_watch_of_kubernetes_is_read() {
        for size in [1, 3, 500, 10_000] {
            let mut buffer = BytesMut::new();
            let mut events = Vec::new();
            for piece in golden("watch").chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(event) = take(&mut buffer).expect("events") {
                    events.push((event.kind, event.object.expect("an object").raw));
                }
            }
            let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
            assert_eq!((kinds.as_slice(), buffer.len()), (&["MODIFIED", "BOOKMARK", "ERROR"][..], 0));
            is_the_node(&decode(events[0].1.clone()).expect("a node"), "n1");
            let bookmark: Node = decode(events[1].1.clone()).expect("a node");
            assert_eq!(bookmark.meta.expect("metadata").version, "4713");
            assert_eq!(decode::<Status>(events[2].1.clone()).expect("a status").code, 410);
        }
        // The test's own server writes the same frames.
        let mut buffer = BytesMut::from(&golden("watch")[..]);
        let first = take(&mut buffer).expect("events").expect("an event");
        assert!(golden("watch").starts_with(&frame(&first)));
        assert!(take(&mut BytesMut::from(&b"\x01\0\0\x01"[..])).is_err(), "too large");
    }

    #[test]
    fn an_object_survives_its_frame() {
        let meta = ObjectMeta { name: "n1".into(), version: "7".into(), ..ObjectMeta::default() };
        let node = Node { meta: Some(meta), spec: None };
        assert_eq!(decode(encode("v1", "Node", &node).into()), Some(node));
        for broken in [&b""[..], b"k8s", b"{\"kind\":\"Node\"}", b"k8s\0\xff"] {
            assert_eq!(decode::<Node>(Bytes::copy_from_slice(broken)), None);
        }
    }

    #[test]
    fn nodes_are_counted_before_they_are_decoded() {
        assert_eq!(nodes_of(&golden("list")), Some(2));
        let list = |items: Vec<Node>| encode("v1", "NodeList", &NodeList { meta: None, items }).into();
        assert_eq!(nodes_of(&list(vec![])), Some(0));
        assert_eq!(nodes_of(&list(vec![Node::default(); 5000])), Some(5000));
        let spec = NodeSpec { pod_cidrs: vec![String::new(); 80_000], ..NodeSpec::default() };
        assert_eq!(nodes_of(&list(vec![Node { meta: None, spec: Some(spec) }])), Some(10_000));
        for broken in [&b""[..], b"{}", b"k8s\0\x12\x02\x12\x09", b"k8s\0\x12\x01\x12", b"k8s\0\xff"] {
            assert_eq!(nodes_of(&Bytes::copy_from_slice(broken)), None, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let framed = [MAGIC, &noise].concat();
            let framed = Bytes::from(framed);
            nodes_of(&framed);
            count(&framed[MAGIC.len()..], &[2, 2, 7]);
            decode::<Node>(framed);
            let _ = WatchEvent::decode(Bytes::from(noise));
        }
    }
}
