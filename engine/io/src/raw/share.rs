//! Divides packets among raw sockets with a classic BPF filter (linux/filter.h) that hashes the addresses and
//! ports of the inner IPv4 packet.
//!
//! One socket keeps all packets of a flow, which preserves their order. Packets without ports, and fragments,
//! are hashed by address alone. A packet too short for an inner header goes to the first socket, so that it
//! is counted once.

use libc::sock_filter;

// linux/bpf_common.h
const LD_LEN: u16 = 0x80;
const LD_W_IND: u16 = 0x40;
const LD_H_IND: u16 = 0x48;
const LD_B_IND: u16 = 0x50;
const LD_MEM: u16 = 0x60;
const LDX_MEM: u16 = 0x61;
/// X = 4 * (low four bits of the byte at k): the length of the IPv4 header there.
const LDX_HEADER_LEN: u16 = 0xb1;
const ST: u16 = 0x02;
const STX: u16 = 0x03;
const ADD_X: u16 = 0x0c;
const SUB_X: u16 = 0x1c;
const MUL_K: u16 = 0x24;
const AND_K: u16 = 0x54;
const LSH_K: u16 = 0x64;
const RSH_K: u16 = 0x74;
const MOD_K: u16 = 0x94;
const XOR_X: u16 = 0xac;
const TAX: u16 = 0x07;
const JEQ_K: u16 = 0x15;
const JGE_K: u16 = 0x35;
const JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

// Indices into the BPF scratch memory.
const OUTER_LEN: u32 = 0;
const HASH: u32 = 1;

/// Return value that keeps the whole packet.
const KEEP: u32 = u32::MAX;
/// Hash multiplier: an odd number near 2^32 divided by the golden ratio.
const SPREAD: u32 = 0x9e37_79b1;

/// Returns the filter of socket `index` of `sockets`, or `None` if the socket keeps nothing.
pub(super) fn program(index: usize, sockets: usize) -> Option<Vec<sock_filter>> {
    if index >= sockets {
        return None;
    }
    let one = |code, k| sock_filter { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    if sockets == 1 {
        return Some(vec![one(RET_K, KEEP)]);
    }
    let stray = if index == 0 { KEEP } else { 0 };
    Some(vec![
        /*  0 */ one(LDX_HEADER_LEN, 0),
        /*  1 */ one(STX, OUTER_LEN),
        /*  2 */ one(LD_LEN, 0),
        /*  3 */ one(SUB_X, 0),
        // This cannot underflow: the kernel has checked the length of the outer header.
        /*  4 */
        jump(JGE_K, 20, 1, 0),
        /*  5 */ one(RET_K, stray),
        /*  6 */ one(LD_W_IND, 12),
        /*  7 */ one(MUL_K, SPREAD),
        /*  8 */ one(ST, HASH),
        /*  9 */ one(LD_W_IND, 16),
        /* 10 */ one(LDX_MEM, HASH),
        /* 11 */ one(XOR_X, 0),
        /* 12 */ one(MUL_K, SPREAD),
        /* 13 */ one(ST, HASH),
        /* 14 */ one(LDX_MEM, OUTER_LEN),
        /* 15 */ one(LD_B_IND, 9),
        // If neither TCP nor UDP, go to 34.
        /* 16 */ jump(JEQ_K, 6, 1, 0),
        /* 17 */ jump(JEQ_K, 17, 0, 16),
        /* 18 */ one(LD_H_IND, 6),
        // If a fragment, go to 34.
        /* 19 */ jump(JSET_K, 0x3fff, 14, 0),
        /* 20 */ one(LD_B_IND, 0),
        /* 21 */ one(AND_K, 0x0f),
        /* 22 */ one(LSH_K, 2),
        /* 23 */ one(ADD_X, 0),
        /* 24 */ one(TAX, 0),
        /* 25 */ one(LD_LEN, 0),
        // If the ports are missing, go to 34. The subtraction underflows if the inner header claims more
        // bytes than there are. That is caught here, because a load out of bounds ends the program with 0 and
        // every socket would drop the packet.
        /* 26 */
        one(SUB_X, 0),
        /* 27 */ jump(JGE_K, 0x8000_0000, 6, 0),
        /* 28 */ jump(JGE_K, 4, 0, 5),
        /* 29 */ one(LD_W_IND, 0),
        /* 30 */ one(LDX_MEM, HASH),
        /* 31 */ one(XOR_X, 0),
        /* 32 */ one(MUL_K, SPREAD),
        /* 33 */ one(ST, HASH),
        /* 34 */ one(LD_MEM, HASH),
        /* 35 */ one(RSH_K, 16),
        /* 36 */ one(MOD_K, sockets as u32),
        /* 37 */ jump(JEQ_K, index as u32, 0, 1),
        /* 38 */ one(RET_K, KEEP),
        /* 39 */ one(RET_K, 0),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the subset of classic BPF that the filter uses. A load out of bounds returns 0, as in the
    /// kernel.
    fn run(program: &[sock_filter], packet: &[u8]) -> u32 {
        let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0);
        let load = |offset: u32, len: usize| {
            let start = offset as usize;
            let bytes = packet.get(start..start.checked_add(len)?)?;
            Some(bytes.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte)))
        };
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let loaded = match code {
                LD_W_IND => Some(load(x.wrapping_add(k), 4)),
                LD_H_IND => Some(load(x.wrapping_add(k), 2)),
                LD_B_IND => Some(load(x.wrapping_add(k), 1)),
                LDX_HEADER_LEN => Some(load(k, 1)),
                _ => None,
            };
            if let Some(loaded) = loaded {
                let Some(value) = loaded else { return 0 };
                if code == LDX_HEADER_LEN {
                    x = 4 * (value & 15)
                } else {
                    a = value
                }
                continue;
            }
            let mut jump = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                LD_LEN => a = packet.len() as u32,
                LD_MEM => a = memory[k as usize],
                LDX_MEM => x = memory[k as usize],
                ST => memory[k as usize] = a,
                STX => memory[k as usize] = x,
                ADD_X => a = a.wrapping_add(x),
                SUB_X => a = a.wrapping_sub(x),
                MUL_K => a = a.wrapping_mul(k),
                AND_K => a &= k,
                LSH_K => a <<= k,
                RSH_K => a >>= k,
                MOD_K => a %= k,
                XOR_X => a ^= x,
                TAX => x = a,
                JEQ_K => jump(a == k),
                JGE_K => jump(a >= k),
                JSET_K => jump(a & k != 0),
                RET_K => return k,
                other => panic!("code {other:#x}"),
            }
        }
    }

    fn keepers(sockets: usize, packet: &[u8]) -> Vec<usize> {
        (0..sockets).filter(|index| run(&program(*index, sockets).unwrap(), packet) != 0).collect()
    }

    /// Builds an outer header with `options` words of options, an inner header for `protocol`, and ports.
    fn packet(options: u8, protocol: u8, fragment: u16, ports: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + 4 * usize::from(options)];
        bytes[0] = 0x45 + options;
        let mut inner = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 1, 0, 5, 10, 2, 0, 7];
        inner[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes.extend(inner);
        bytes.extend(ports);
        bytes
    }

    #[test]
    fn exactly_one_socket_keeps_each_packet() {
        for sockets in 1..=8 {
            let whole = packet(0, 6, 0, [1, 2, 3, 4]);
            // The kernel never delivers a packet shorter than its outer header.
            for len in 20..whole.len() {
                assert_eq!(keepers(sockets, &whole[..len]).len(), 1, "{len} bytes, {sockets} sockets");
            }
            for protocol in [1, 6, 17] {
                for fragment in [0, 0x2000, 0x1fff] {
                    assert_eq!(keepers(sockets, &packet(0, protocol, fragment, [9, 8, 7, 6])).len(), 1);
                }
            }
            let mut oversized = packet(0, 6, 0, [1, 2, 3, 4]);
            oversized[20] = 0x4f;
            assert_eq!(keepers(sockets, &oversized).len(), 1, "an inner header longer than the packet");
        }
        assert!(program(2, 2).is_none());
    }

    #[test]
    fn flows_are_spread_evenly_and_ignore_outer_options() {
        for sockets in [2, 3, 4, 8] {
            let mut seen = vec![0; sockets];
            for port in 0..=255u8 {
                let with_options = keepers(sockets, &packet(2, 6, 0, [0xc0, port, 0x14, 0x51]));
                assert_eq!(keepers(sockets, &packet(0, 6, 0, [0xc0, port, 0x14, 0x51])), with_options);
                seen[with_options[0]] += 1;
            }
            let fair = 256 / sockets;
            assert!(seen.iter().all(|count| (fair / 2..=2 * fair).contains(count)), "{seen:?}");
        }
    }

    #[test]
    fn one_socket_keeps_all_fragments_of_a_datagram() {
        let first = keepers(8, &packet(0, 17, 0x2000, [1, 2, 3, 4]));
        assert_eq!(keepers(8, &packet(0, 17, 0x00b9, [5, 6, 7, 8])), first);
    }
}
