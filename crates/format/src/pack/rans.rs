//! Entropy coding of bytes by their frequencies alone: range asymmetric numeral systems (Duda, "Asymmetric numeral
//! systems", 2013; interleaved as Giesen, "Interleaved entropy coders", 2014). 32-bit states, probabilities of 12 bits,
//! renormalised by 16 bits, eight states in turn.
//!
//! A coded run is one byte for the mode and what the mode needs: the bytes themselves; the only byte that occurs; or
//! the table of frequencies, the eight last states, and the 16-bit words in the order in which the decoder wants them.

use super::{Fault, zeros};

/// The bits of a probability.
const BITS: u32 = 12;
/// The sum of all frequencies.
const TOTAL: u32 = 1 << BITS;
/// The least value of a state between two symbols.
const LOW: u32 = 1 << 16;
/// How many states take turns.
const LANES: usize = 8;

const STORED: u8 = 0;
const ONE: u8 = 1;
const CODED: u8 = 2;

/// How often each byte occurs.
pub(super) fn histogram(data: &[u8]) -> [u64; 256] {
    let mut counts = [0; 256];
    for &b in data {
        counts[usize::from(b)] += 1;
    }
    counts
}

/// Codes bytes. The result is at most one byte longer than the data.
pub fn encode(data: &[u8]) -> Vec<u8> {
    let counts = histogram(data);
    match counts.iter().filter(|&&c| c > 0).count() {
        0 => return vec![STORED],
        1 => return vec![ONE, data[0]],
        _ => {}
    }
    let table = normalise(&counts);
    let mut starts = [0; 256];
    let mut start = 0;
    for (s, &f) in starts.iter_mut().zip(&table) {
        *s = start;
        start += f;
    }
    let mut states = [LOW; LANES];
    let mut words: Vec<u16> = Vec::new();
    for (i, &symbol) in data.iter().enumerate().rev() {
        let (f, start) = (table[usize::from(symbol)], starts[usize::from(symbol)]);
        let x = &mut states[i % LANES];
        // Two symbols or more: f < 4096, and the bound fits.
        if *x >= f << (32 - BITS) {
            words.push((*x & 0xffff) as u16);
            *x >>= 16;
        }
        *x = ((*x / f) << BITS) + *x % f + start;
    }
    let mut out = vec![CODED];
    write_table(&mut out, &table);
    out.extend(states.iter().flat_map(|x| x.to_le_bytes()));
    out.extend(words.iter().rev().flat_map(|w| w.to_le_bytes()));
    if out.len() > data.len() {
        out.clear();
        out.push(STORED);
        out.extend_from_slice(data);
    }
    out
}

/// The inverse of [`encode`], for data of `len` bytes. Allocates `len` bytes and no more.
///
/// # Errors
/// When the code is broken, is not of `len` bytes, or there is no memory for them.
pub fn decode(code: &[u8], len: usize) -> Result<Vec<u8>, Fault> {
    match code {
        [STORED, data @ ..] if data.len() == len => {
            let mut out = zeros(len)?;
            out.copy_from_slice(data);
            Ok(out)
        }
        [ONE, symbol] => {
            let mut out = zeros(len)?;
            out.fill(*symbol);
            Ok(out)
        }
        [CODED, rest @ ..] => decode_coded(rest, len),
        [STORED, data @ ..] => Err(Fault::new(format!("{} bytes are stored where {len} belong", data.len()))),
        _ => Err(Fault::new("an unknown mode of entropy coding")),
    }
}

/// A slot of the decoder's table.
#[derive(Clone, Copy, Default)]
struct Slot {
    symbol: u8,
    /// The symbol's frequency.
    frequency: u16,
    /// The place of the slot among those of its symbol.
    place: u16,
}

fn decode_coded(code: &[u8], len: usize) -> Result<Vec<u8>, Fault> {
    let (slots, rest) = read_table(code)?;
    let short = || Fault::new("the states of an entropy code are cut off");
    let (head, rest) = rest.split_at_checked(4 * LANES).ok_or_else(short)?;
    let mut states = [0; LANES];
    for (x, b) in states.iter_mut().zip(head.as_chunks::<4>().0) {
        *x = u32::from_le_bytes(*b);
    }
    let (words, []) = rest.as_chunks::<2>() else {
        return Err(Fault::new("an entropy code ends within a word"));
    };
    let mut words = words.iter();
    let mut out = zeros(len)?;
    for turn in out.chunks_mut(LANES) {
        for (byte, x) in turn.iter_mut().zip(&mut states) {
            let slot = slots[(*x % TOTAL) as usize];
            // Below 2^32 for every state, because frequency * (x >> 12) + place <= x.
            *x = u32::from(slot.frequency) * (*x >> BITS) + u32::from(slot.place);
            if *x < LOW {
                let word = words.next().ok_or_else(|| Fault::new("an entropy code is cut off"))?;
                *x = *x << 16 | u32::from(u16::from_le_bytes(*word));
            }
            *byte = slot.symbol;
        }
    }
    if words.next().is_some() || states != [LOW; LANES] {
        return Err(Fault::new("an entropy code does not end where its data end"));
    }
    Ok(out)
}

/// Frequencies that sum to [`TOTAL`], at least 1 for each byte that occurs, with the least size of the code. At least
/// two bytes occur.
fn normalise(counts: &[u64; 256]) -> [u32; 256] {
    let all = counts.iter().sum::<u64>() as f64;
    let mut table = counts.map(|c| match c {
        0 => 0,
        c => ((c as f64 / all * f64::from(TOTAL)).round() as u32).clamp(1, TOTAL - 1),
    });
    // What a step from f to f + 1 saves, in bits.
    let step = |s: usize, f: u32| counts[s] as f64 * (1.0 + 1.0 / f64::from(f)).log2();
    let mut sum: u32 = table.iter().sum();
    while sum != TOTAL {
        let grow = sum < TOTAL;
        let rank = |&s: &usize| if grow { -step(s, table[s]) } else { step(s, table[s] - 1) };
        let least =
            (0..256).filter(|&s| table[s] > u32::from(!grow)).min_by(|a, b| rank(a).total_cmp(&rank(b)));
        let Some(s) = least else { break };
        if grow {
            table[s] += 1;
            sum += 1;
        } else {
            table[s] -= 1;
            sum -= 1;
        }
    }
    table
}

/// A frequency below 128 is one byte, a greater one two, and zeros are a 0 and their number less one. The table ends
/// where the sum is full.
fn write_table(out: &mut Vec<u8>, table: &[u32; 256]) {
    let (mut symbol, mut sum) = (0, 0);
    while sum < TOTAL && symbol < table.len() {
        let f = table[symbol];
        if f == 0 {
            let run = table[symbol..].iter().take_while(|&&f| f == 0).count();
            out.extend([0, (run - 1) as u8]);
            symbol += run;
            continue;
        }
        if f < 128 {
            out.push(f as u8);
        } else {
            out.extend([0x80 | (f >> 8) as u8, f as u8]);
        }
        sum += f;
        symbol += 1;
    }
}

/// Reads a table; gives the slots and what follows.
fn read_table(code: &[u8]) -> Result<(Vec<Slot>, &[u8]), Fault> {
    let mut bytes = code.iter();
    let mut next = || bytes.next().copied().ok_or_else(|| Fault::new("a table of frequencies is cut off"));
    let mut slots = Vec::with_capacity(TOTAL as usize);
    let (mut symbol, mut used) = (0_usize, 0);
    while slots.len() < TOTAL as usize {
        let frequency = match next()? {
            0 => {
                symbol += usize::from(next()?) + 1;
                continue;
            }
            f if f < 128 => u16::from(f),
            f => u16::from(f & 0x7f) << 8 | u16::from(next()?),
        };
        let fits = frequency > 0 && slots.len() + usize::from(frequency) <= TOTAL as usize;
        let (Ok(byte), true) = (u8::try_from(symbol), fits) else {
            return Err(Fault::new("a table of frequencies does not sum to 4096"));
        };
        slots.extend((0..frequency).map(|place| Slot { symbol: byte, frequency, place }));
        symbol += 1;
        used += 1;
    }
    if used < 2 {
        return Err(Fault::new("a table of frequencies has a single symbol"));
    }
    Ok((slots, bytes.as_slice()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes whose frequencies fall by `ratio` from one to the next.
    fn skewed(len: usize, ratio: f64) -> Vec<u8> {
        let mut seed = 1_u64;
        let mut draw = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        (0..len).map(|_| (draw().ln() / ratio.ln()).min(255.0) as u8).collect()
    }

    fn entropy(data: &[u8]) -> f64 {
        let n = data.len() as f64;
        histogram(data).iter().filter(|&&c| c > 0).map(|&c| c as f64 * (n / c as f64).log2() / 8.0).sum()
    }

    #[test]
    fn the_size_is_within_a_hundredth_of_the_entropy() {
        for ratio in [0.3, 0.5, 0.8, 0.95] {
            let data = skewed(100_000, ratio);
            let code = encode(&data);
            let mut table = Vec::new();
            write_table(&mut table, &normalise(&histogram(&data)));
            let bound = 1.01 * entropy(&data) + table.len() as f64 + 4.0 * LANES as f64;
            assert!((code.len() as f64) < bound, "{ratio}: {} of {bound}", code.len());
            assert_eq!(decode(&code, data.len()).unwrap(), data);
        }
    }

    #[test]
    fn a_single_symbol_and_noise_are_kept_small() {
        assert_eq!(encode(&[7; 5000]), [ONE, 7]);
        let noise: Vec<u8> = (0..2000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(encode(&noise).len() <= noise.len() + 1);
        assert_eq!(encode(&[]), [STORED]);
        assert!(decode(&encode(&[]), 0).unwrap().is_empty());
    }

    #[test]
    fn rare_symbols_survive_beside_a_frequent_one() {
        let mut data = vec![0; 1 << 20];
        for i in 1..=255_u8 {
            data[usize::from(i) * 4000] = i;
        }
        let code = encode(&data);
        assert!(code.len() < 150_000);
        assert_eq!(decode(&code, data.len()).unwrap(), data);
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        let data = skewed(1000, 0.5);
        let code = encode(&data);
        for len in [0, 1, 7, 999, 1001, 5000] {
            assert!(decode(&code, len).is_err(), "{len}");
        }
        assert!(decode(&[ONE, 3], usize::MAX).is_err());
    }

    proptest! {
        #[test]
        fn what_is_coded_is_decoded(data in prop::collection::vec(0..40_u8, 0..3000)) {
            prop_assert_eq!(decode(&encode(&data), data.len()).unwrap(), data);
        }

        #[test]
        fn all_bytes_are_decoded(data in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(decode(&encode(&data), data.len()).unwrap(), data);
        }

        #[test]
        fn garbage_is_no_panic(mode in 0..4_u8, mut code in prop::collection::vec(any::<u8>(), 0..200), len in 0..500_usize) {
            code.insert(0, mode);
            let _ = decode(&code, len);
            // A table that is right, and garbage after it.
            let mut code = code;
            code.splice(..1, [CODED, 0x88, 0, 0x84, 0, 0x84, 0]);
            let _ = decode(&code, len);
        }
    }
}
