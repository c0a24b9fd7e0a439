//! Decimal numbers of any length, compared exactly: what a venue writes is never rounded.

use std::cmp::Ordering;

/// A decimal number: `0.DIGITS × 10^exponent`, without zeros at either end of the digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

impl Decimal {
    /// Reads `-12.50`, `0`, `1e-8`. No other notation, no spaces.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, power) = match rest.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power.parse::<i32>().ok()?),
            None => (rest, 0),
        };
        let (whole, part) = match mantissa.split_once('.') {
            Some((whole, part)) if !part.is_empty() => (whole, part),
            Some(_) => return None,
            None => (mantissa, ""),
        };
        if whole.is_empty() || !whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let all: Vec<u8> = whole.bytes().chain(part.bytes()).collect();
        let leading = all.iter().take_while(|digit| **digit == b'0').count();
        let trailing = all.iter().rev().take_while(|digit| **digit == b'0').count();
        if leading == all.len() {
            return Some(Self { negative: false, digits: Vec::new(), exponent: 0 });
        }
        let shift = i64::try_from(whole.len()).ok()? - i64::try_from(leading).ok()?;
        Some(Self { negative, digits: all[leading..all.len() - trailing].to_vec(), exponent: i64::from(power) + shift })
    }

    /// Whether it is zero, however it was written.
    pub fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    fn sign(&self) -> i8 {
        match (self.is_zero(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        self.exponent.cmp(&other.exponent).then_with(|| self.digits.cmp(&other.digits))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sign().cmp(&other.sign()).then_with(|| match self.sign() {
            0 => Ordering::Equal,
            1 => self.magnitude(other),
            _ => other.magnitude(self),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[rstest]
    #[case("1", "1.0", Ordering::Equal)]
    #[case("100", "1e2", Ordering::Equal)]
    #[case("0", "-0.000", Ordering::Equal)]
    #[case("0.1", "0.10", Ordering::Equal)]
    #[case("1e-8", "0.00000001", Ordering::Equal)]
    #[case("0.30000000000000004", "0.3", Ordering::Greater)]
    #[case("12345678901234567890.1", "12345678901234567890.2", Ordering::Less)]
    #[case("-2", "-1", Ordering::Less)]
    #[case("-1", "1", Ordering::Less)]
    #[case("9", "10", Ordering::Less)]
    #[case("0.9", "0.10", Ordering::Greater)]
    #[case("-0.5", "0", Ordering::Less)]
    fn compares(#[case] a: &str, #[case] b: &str, #[case] expected: Ordering) {
        assert_eq!(decimal(a).cmp(&decimal(b)), expected);
        assert_eq!(decimal(b).cmp(&decimal(a)), expected.reverse());
    }

    #[rstest]
    fn refuses(
        #[values("", "-", ".", "1.", ".5", "1e", "1e99999999999", "0x1", " 1", "1 ", "1,5", "NaN", "inf", "--1")]
        text: &str,
    ) {
        assert_eq!(Decimal::parse(text), None);
    }

    proptest! {
        #[test]
        fn agrees_with_integers(a in any::<i64>(), b in any::<i64>()) {
            prop_assert_eq!(decimal(&a.to_string()).cmp(&decimal(&b.to_string())), a.cmp(&b));
        }

        #[test]
        fn never_panics(text in "[-+0-9.eE]{0,40}") {
            let _ = Decimal::parse(&text);
        }
    }
}
