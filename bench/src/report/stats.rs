//! Medians and spreads of a handful of rounds.

/// Median, extremes and number of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Median; for an even number, the mean of the two middle values.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Number of values.
    pub count: usize,
}

/// Summarises the finite values; `None` if there are none.
pub fn summarise(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    Some(Summary { median, min, max, count: values.len() })
}

/// Returns the ratios of `subject` to `baseline`, round by round, without rounds that one side lacks or in
/// which the baseline is zero. Paired by round, because the machine's speed drifts: samples close in time
/// share it, medians of the whole run do not.
pub fn ratios(subject: &[(u32, f64)], baseline: &[(u32, f64)]) -> Vec<f64> {
    let of_round = |round: u32| baseline.iter().find(|(r, v)| *r == round && *v > 0.0);
    subject.iter().filter_map(|(round, value)| of_round(*round).map(|(_, base)| value / base)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_and_even_counts() {
        let odd = summarise([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd, Summary { median: 2.0, min: 1.0, max: 3.0, count: 3 });
        assert_eq!(summarise([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(summarise([7.0]).unwrap(), Summary { median: 7.0, min: 7.0, max: 7.0, count: 1 });
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        assert_eq!(summarise([f64::NAN, 1.0, f64::INFINITY]).unwrap().count, 1);
        assert_eq!(summarise([f64::NAN]), None);
        assert_eq!(summarise([]), None);
    }

    #[test]
    fn ratios_pair_rounds_and_skip_gaps() {
        let subject = [(1, 5.0), (2, 6.0), (3, 7.0), (4, 8.0)];
        let baseline = [(4, 4.0), (2, 3.0), (3, 0.0)];
        assert_eq!(ratios(&subject, &baseline), [2.0, 2.0]);
    }

    #[test]
    fn the_median_of_ratios_is_not_the_ratio_of_medians() {
        // A slow machine in round 2 affects both sides alike.
        let subject = [(1, 10.0), (2, 1.0), (3, 12.0)];
        let baseline = [(1, 20.0), (2, 2.0), (3, 16.0)];
        assert_eq!(summarise(ratios(&subject, &baseline)).unwrap().median, 0.5);
        assert_eq!(10.0 / 16.0, 0.625);
    }
}
