//! Numbers to calculate with. What cannot be represented exactly is not known.

use rust_decimal::Decimal;

use super::decimal;

/// The digits that a number may have.
const DIGITS: usize = 28;

/// Reads what [`decimal::Decimal::parse`] reads, if it fits into 28 digits.
pub fn exact(text: &str) -> Option<Decimal> {
    decimal::Decimal::parse(text)?;
    let text = text.strip_prefix('+').unwrap_or(text);
    match text.split_once(['e', 'E']) {
        None => Decimal::from_str_exact(text).ok(),
        Some((mantissa, _)) if mantissa.bytes().filter(u8::is_ascii_digit).count() <= DIGITS => {
            Decimal::from_scientific(text).ok()
        }
        Some(_) => None,
    }
}

/// The number without zeros at its end and without an exponent.
pub fn text(number: Decimal) -> String {
    number.normalize().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("10.50", Some("10.5"))]
    #[case("-3", Some("-3"))]
    #[case("+3", Some("3"))]
    #[case("-0.0", Some("0"))]
    #[case("1e-8", Some("0.00000001"))]
    #[case("1.5E3", Some("1500"))]
    #[case("1E+2", Some("100"))]
    #[case("123456789.123456789012345678", Some("123456789.123456789012345678"))]
    #[case("0.1234567890123456789012345678901", None)]
    #[case("99999999999999999999999999999999", None)]
    #[case("1e-40", None)]
    #[case("1e40", None)]
    #[case("0.12345678901234567890123456789e1", None)]
    #[case("many", None)]
    #[case("", None)]
    fn reads(#[case] given: &str, #[case] expected: Option<&str>) {
        assert_eq!(exact(given).map(text).as_deref(), expected);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_rounds(given in "[-+]?[0-9]{1,20}([.][0-9]{1,20})?([eE][-+]?[0-9]{1,3})?") {
            if let Some(number) = exact(&given) {
                prop_assert_eq!(decimal::Decimal::parse(&text(number)), decimal::Decimal::parse(&given));
            }
        }
    }
}
