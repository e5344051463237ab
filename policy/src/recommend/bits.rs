//! Description lengths: how many thousandths of a bit it takes to say something.
//!
//! Whole numbers, so that comparisons have no rounding surprises.

/// `log2(n!)`, by Stirling's series (the error is far below a thousandth of a bit from 16 on).
fn log2_factorial(n: u128) -> f64 {
    if n < 16 {
        return (2..=n).map(|factor| (factor as f64).log2()).sum();
    }
    let n = n as f64;
    let nats = n * n.ln() - n + 0.5 * (std::f64::consts::TAU * n).ln() + 1.0 / (12.0 * n);
    nats / std::f64::consts::LN_2
}

/// Says one of `n` things.
pub(crate) fn choice(n: usize) -> i64 {
    round((n.max(1) as f64).log2())
}

/// Says which `seen` of `allowed` cells are in use: `log2(allowed + 1)` for the number and
/// `log2 C(allowed, seen)` for the choice. Zero over-permission costs next to nothing; half of a big
/// rectangle costs a bit a cell.
pub(crate) fn cells(allowed: u128, seen: u128) -> i64 {
    let seen = seen.min(allowed);
    let number = (allowed as f64 + 1.0).log2();
    let choice = log2_factorial(allowed) - log2_factorial(seen) - log2_factorial(allowed - seen);
    round(number + choice.max(0.0))
}

fn round(bits: f64) -> i64 {
    (bits * 1000.0).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_cases_are_exact() {
        assert_eq!(choice(8), 3000);
        assert_eq!(cells(1, 1), 1000);
        // C(4, 2) = 6, one of five numbers.
        assert_eq!(cells(4, 2), round(6f64.log2() + 5f64.log2()));
        let exact: f64 = (1..=20).map(|n| f64::from(n).log2()).sum();
        assert!((log2_factorial(20) - exact).abs() < 1e-4);
        assert_eq!(cells(3, 7), cells(3, 3));
    }
}
