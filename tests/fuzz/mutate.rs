//! Making new inputs from old ones.

use super::Rng;

/// Longest input that is made, in bytes: longer ones find the same, slower.
const LENGTH_MAX: usize = 16 << 10;

/// Numbers at the edges.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// One sample, changed in one to eight places.
pub fn mutate(samples: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = choose(samples, rng).clone();
    for _ in 0..=rng.below(8) {
        change(&mut input, samples, rng);
    }
    input.truncate(LENGTH_MAX);
    input
}

fn choose<'a>(samples: &'a [Vec<u8>], rng: &mut Rng) -> &'a Vec<u8> {
    &samples[rng.below(samples.len() as u64) as usize]
}

/// A place in `bytes`, its end included.
fn place(bytes: &[u8], rng: &mut Rng) -> usize {
    rng.below(bytes.len() as u64 + 1) as usize
}

/// A piece of `bytes`, mostly short.
fn piece<'a>(bytes: &'a [u8], rng: &mut Rng) -> &'a [u8] {
    let from = place(bytes, rng);
    let longest = if rng.one_in(4) { bytes.len() } else { 32 };
    let length = rng.below(longest as u64 + 1) as usize;
    &bytes[from..(from + length).min(bytes.len())]
}

/// A whole line of a text.
fn line<'a>(bytes: &'a [u8], rng: &mut Rng) -> &'a [u8] {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    if lines.is_empty() { &[] } else { lines[rng.below(lines.len() as u64) as usize] }
}

fn change(input: &mut Vec<u8>, samples: &[Vec<u8>], rng: &mut Rng) {
    let at = place(input, rng);
    match rng.below(11) {
        0 => flip(input, at, 1 << rng.below(8)),
        1 => flip(input, at, rng.next() as u8),
        2 => insert(input, at, &[rng.next() as u8]),
        3 => insert(input, at, &rng.next().to_le_bytes()),
        // Something of its own, or of another sample, again.
        4 => insert(input, at, piece(&input.clone(), rng)),
        5 => insert(input, at, piece(choose(samples, rng), rng)),
        6 => {
            let at = input[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            insert(input, at, line(choose(samples, rng), rng));
        }
        7 => {
            let end = (at + rng.below(32) as usize).min(input.len());
            input.drain(at..end);
        }
        8 => overwrite(input, at, &EDGES[rng.below(EDGES.len() as u64) as usize].to_le_bytes()[..1 << rng.below(4)]),
        9 => replace_number(input, at, rng),
        _ if rng.one_in(8) => input.truncate(at),
        _ if rng.one_in(8) => insert(input, at, &vec![rng.next() as u8; rng.below(8192) as usize]),
        _ => overwrite(input, at, piece(choose(samples, rng), rng)),
    }
}

fn flip(input: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= bits;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (old, new) in input[at..].iter_mut().zip(bytes) {
        *old = *new;
    }
}

/// Replaces the next number that stands there in digits by one at an edge.
fn replace_number(input: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let Some(begin) = input[at..].iter().position(u8::is_ascii_digit).map(|digit| at + digit) else { return };
    let digits = input[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = EDGES[rng.below(EDGES.len() as u64) as usize].to_string();
    input.splice(begin..begin + digits, number.into_bytes());
}
