//! The parts of Kubernetes' protocol buffers that are needed, by their field numbers in `generated.proto` of
//! `k8s.io/api/core/v1` and `k8s.io/apimachinery/pkg/{runtime,apis/meta/v1}`. All other fields are skipped
//! without being stored: a node's status is most of the node.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

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

/// Encodes an object with its frame.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn encode(version: &str, kind: &str, message: &impl Message) -> Vec<u8> {
    let meta = TypeMeta { version: version.to_owned(), kind: kind.to_owned() };
    let unknown = Unknown { meta: Some(meta), raw: message.encode_to_vec().into() };
    [MAGIC, &unknown.encode_to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_object_survives_its_frame() {
        let meta = ObjectMeta { name: "n1".into(), version: "7".into(), ..ObjectMeta::default() };
        let node = Node { meta: Some(meta), spec: None };
        assert_eq!(decode(encode("v1", "Node", &node).into()), Some(node));
        for broken in [&b""[..], b"k8s", b"{\"kind\":\"Node\"}", b"k8s\0\xff"] {
            assert_eq!(decode::<Node>(Bytes::copy_from_slice(broken)), None);
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let framed = [MAGIC, &noise].concat();
            decode::<Node>(framed.into());
            let _ = WatchEvent::decode(Bytes::from(noise));
        }
    }
}
