//! Where the keys of a content lie in its arrays of lines: each in one of two, the first of them if it can be.

use datapath::lines::spots;

/// How many of a hundred places are taken at most when an array is made: with one place a line, keys with two choices
/// stop fitting at 50 (Pagh and Rodler, "Cuckoo Hashing", 2001), with two at 89, with four at 97 (Dietzfelbinger and
/// Weidling, 2007); below, the first choice is free for most.
const fn fill(ways: usize) -> usize {
    match ways {
        1 => 40,
        2 => 60,
        _ => 65,
    }
}

/// How often an array is made longer before giving up: to about ten times the length.
const GROWTHS: usize = 20;
/// How many keys move for one that comes, at most.
const MOVES: usize = 500;

/// An array of lines with `ways` places each, as indexes into the keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    ways: usize,
    places: Vec<Option<usize>>,
}

impl Layout {
    /// Lays out keys by their hashes, always in the same way; `None` when they do not fit however long the array is.
    pub(crate) fn of(hashes: &[u64], ways: usize) -> Option<Self> {
        let mut lines = (hashes.len() * 100).div_ceil(ways * fill(ways)) + 1;
        for _ in 0..GROWTHS {
            let mut layout = Self {
                ways,
                places: vec![None; lines * ways],
            };
            if u32::try_from(lines).is_ok()
                && (0..hashes.len()).all(|key| layout.place(key, hashes))
            {
                return Some(layout);
            }
            lines += lines.div_ceil(8);
        }
        None
    }

    /// The lines, each with the keys in it.
    pub(crate) fn lines(&self) -> impl ExactSizeIterator<Item = &[Option<usize>]> {
        self.places.chunks(self.ways)
    }

    fn place(&mut self, key: usize, hashes: &[u64]) -> bool {
        let lines = u32::try_from(self.places.len() / self.ways).unwrap_or(u32::MAX);
        let spots_of = |key: usize| {
            let hash = hashes.get(key).copied().unwrap_or_default();
            spots(hash, lines).map(|line| line as usize)
        };
        let mut key = key;
        let mut from = None;
        for moved in 0..MOVES {
            let spots = spots_of(key);
            for line in spots {
                if let Some(place) = self.line_mut(line).iter_mut().find(|place| place.is_none()) {
                    *place = Some(key);
                    return true;
                }
            }
            // Somebody has to go to its other line: not back to where this one has just been pushed out.
            let line = if from == Some(spots[0]) {
                spots[1]
            } else {
                spots[0]
            };
            let way = moved % self.ways;
            let Some(Some(other)) = self.line_mut(line).get_mut(way) else {
                return false;
            };
            std::mem::swap(other, &mut key);
            from = Some(line);
        }
        false
    }

    fn line_mut(&mut self, line: usize) -> &mut [Option<usize>] {
        let start = line * self.ways;
        self.places
            .get_mut(start..start + self.ways)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::lines;

    #[test]
    fn every_key_lies_in_one_of_its_lines() {
        for ways in [1, 2, 4] {
            for count in [0usize, 1, 2, 3, 10, 1000, 50_000] {
                let hashes: Vec<u64> = (0..count).map(|n| lines::class(n as u32, 3)).collect();
                let layout = Layout::of(&hashes, ways).expect("fits");
                let length = layout.lines().len();
                let mut seen = vec![0; count];
                for (line, keys) in layout.lines().enumerate() {
                    for key in keys.iter().flatten() {
                        seen[*key] += 1;
                        let [one, two] = spots(hashes[*key], length as u32);
                        assert!(line == one as usize || line == two as usize);
                    }
                }
                assert!(seen.iter().all(|seen| *seen == 1), "{ways} {count}");
                assert!(
                    length <= 2 + count * 100 * 2 / (ways * fill(ways)),
                    "{ways} {count}: {length}"
                );
                assert_eq!(Layout::of(&hashes, ways), Some(layout));
            }
        }
    }

    #[test]
    fn keys_that_collide_whatever_the_length_do_not_fit() {
        assert_eq!(Layout::of(&[7; 9], 1), None);
        assert!(Layout::of(&[7; 8], 4).is_some());
        assert_eq!(Layout::of(&[7; 9], 4), None);
    }
}
