//! Sums, means and deviations that do not depend on the order of the numbers (J5, J8).
//!
//! Floats added in another order give another last digit, and then another digest of the same
//! evidence. So numbers are added exactly: as one whole number of more than 2,000 bits, whose
//! lowest bit is the smallest float. Only the finished sum is rounded.
//!
//! Invariant: the same numbers give the same bits, in any order, on any machine: nothing is used
//! but additions, multiplications, divisions and roots that IEEE 754 defines to the last bit.

/// 32 bits each; the last two are for carries.
const LIMBS: usize = 68;
/// Each addition adds less than 2^32 to a limb, which has room for 2^31 of them.
const ADDITIONS_MAX: u32 = 1 << 30;
/// Of numbers up to here even 2^63 squares have a sum that is a float.
const MAGNITUDE_MAX: f64 = 1e140;

/// A sum of floats without any rounding.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sum {
    limbs: Box<[i64; LIMBS]>,
    additions: u32,
}

impl Sum {
    fn new() -> Self {
        Self {
            limbs: Box::new([0; LIMBS]),
            additions: 0,
        }
    }

    fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let exponent = (bits >> 52) & 0x7ff;
        let fraction = bits & ((1 << 52) - 1);
        // Subnormals share the exponent of the smallest normal numbers.
        let (mantissa, shift) = match exponent {
            0 => (fraction, 0),
            exponent => (fraction | 1 << 52, exponent - 1),
        };
        let limb = usize::try_from(shift / 32).expect("an exponent has 11 bits");
        let mut rest = u128::from(mantissa) << (shift % 32);
        for limb in &mut self.limbs[limb..limb + 3] {
            let part = (rest & 0xffff_ffff) as i64;
            *limb += if value.is_sign_negative() {
                -part
            } else {
                part
            };
            rest >>= 32;
        }
        self.additions += 1;
        if self.additions == ADDITIONS_MAX {
            self.carry();
        }
    }

    /// Brings each limb but the last, which has the sign, back to 0..2^32.
    fn carry(&mut self) {
        let mut carry = 0;
        for limb in &mut self.limbs[..LIMBS - 1] {
            let whole = *limb + carry;
            carry = whole >> 32;
            *limb = whole & 0xffff_ffff;
        }
        self.limbs[LIMBS - 1] += carry;
        self.additions = 0;
    }

    /// The sum as a pair of floats.
    fn pair(&self) -> Pair {
        let mut positive = self.clone();
        positive.carry();
        let negative = positive.limbs[LIMBS - 1] < 0;
        if negative {
            positive.limbs.iter_mut().for_each(|limb| *limb = -*limb);
            positive.carry();
        }
        let limbs = positive.limbs.iter().enumerate().rev();
        let mut pair = Pair {
            high: 0.0,
            low: 0.0,
        };
        // Five limbs hold at least 129 bits; a pair has 106.
        for (i, limb) in limbs.filter(|(_, limb)| **limb != 0).take(5) {
            let limb = u32::try_from(*limb).expect("carried limbs are below 2^32");
            pair = pair.plus(f64::from(limb) * power_of_two(32 * i));
        }
        if negative { pair.negative() } else { pair }
    }
}

/// 2^(exponent − 1074).
fn power_of_two(exponent: usize) -> f64 {
    f64::from_bits(match exponent {
        0..52 => 1 << exponent,
        _ => (exponent as u64 - 51) << 52,
    })
}

/// A number of twice a float's precision: the sum of two.
#[derive(Clone, Copy, Debug)]
struct Pair {
    high: f64,
    low: f64,
}

impl Pair {
    fn negative(self) -> Self {
        Self {
            high: -self.high,
            low: -self.low,
        }
    }

    fn plus(self, other: f64) -> Self {
        let (sum, error) = two_sum(self.high, other);
        let (high, low) = two_sum(sum, error + self.low);
        Self { high, low }
    }

    fn minus(self, other: Self) -> Self {
        self.plus(-other.high).plus(-other.low)
    }

    fn square(self) -> Self {
        let high = self.high * self.high;
        let low = self.high.mul_add(self.high, -high) + 2.0 * self.high * self.low;
        let (high, low) = two_sum(high, low);
        Self { high, low }
    }

    fn over(self, n: f64) -> Self {
        let high = self.high / n;
        let rest = (-high).mul_add(n, self.high) + self.low;
        let (high, low) = two_sum(high, rest / n);
        Self { high, low }
    }
}

/// The rounded sum, and what rounding took away.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// Mean and standard deviation of numbers that come one by one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Moments {
    count: u64,
    sum: Sum,
    squares: Sum,
}

impl Moments {
    /// Of no numbers yet.
    pub(super) fn new() -> Self {
        Self {
            count: 0,
            sum: Sum::new(),
            squares: Sum::new(),
        }
    }

    /// Whether a number can be counted: finite, and so that its square is, too.
    pub(super) fn takes(value: f64) -> bool {
        value.abs() <= MAGNITUDE_MAX
    }

    /// Counts a number.
    pub(super) fn add(&mut self, value: f64) {
        assert!(Self::takes(value), "{value} is too large to be squared");
        self.count += 1;
        self.sum.add(value);
        let square = value * value;
        self.squares.add(square);
        self.squares.add(value.mul_add(value, -square));
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; nothing without numbers.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of events are far below 2^53"
    )]
    pub(super) fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum.pair().over(self.count as f64).high)
    }

    /// Their standard deviation (of all of them, not of a sample); nothing without numbers.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of events are far below 2^53"
    )]
    pub(super) fn deviation(&self) -> Option<f64> {
        let n = (self.count > 0).then_some(self.count as f64)?;
        let around_mean = self.squares.pair().minus(self.sum.pair().square().over(n));
        Some((around_mean.over(n).high.max(0.0)).sqrt())
    }
}

/// The natural logarithm of a positive, normal number, the same on every machine: system
/// libraries differ in the last digit.
pub(super) fn natural_log(value: f64) -> f64 {
    assert!(
        value.is_normal() && value > 0.0,
        "{value} has no logarithm here"
    );
    let bits = value.to_bits();
    let mut power = (bits >> 52) as f64 - 1023.0;
    let mut rest = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if rest > std::f64::consts::SQRT_2 {
        rest /= 2.0;
        power += 1.0;
    }
    // ln(x) = 2·atanh((x−1)/(x+1)); here |s| ≤ 0.172, so the terms fall below 1e-17.
    let s = (rest - 1.0) / (rest + 1.0);
    let mut series = 0.0;
    for odd in (1..=23).rev().step_by(2) {
        series = series * s * s + 1.0 / f64::from(odd);
    }
    2.0 * s * series + power * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests;
