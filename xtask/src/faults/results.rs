//! What libtest says of the tests that ran, with `--show-output`.

use std::collections::BTreeMap;

/// What a test prints that a machine lacks something for.
const NOT_RUN: &str = "DID NOT RUN: ";

#[derive(Debug, Default)]
struct Result {
    failed: bool,
    open: bool,
    not_run: Option<String>,
}

/// The tests that ran, by name: of several suites' tests of one name, the worst counts.
#[derive(Debug, Default)]
pub(super) struct Results {
    tests: BTreeMap<String, Result>,
    /// Whose output follows.
    output_of: Option<String>,
}

/// A test, as it counts for its row.
#[derive(Debug)]
pub(super) struct Test<'a> {
    pub(super) name: &'a str,
    pub(super) failed: bool,
    /// It fails, and is known to: it was left out.
    pub(super) open: bool,
    /// Why it did not run.
    pub(super) not_run: Option<&'a str>,
}

impl Results {
    /// Takes the next line.
    pub(super) fn take(&mut self, line: &str) {
        if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let result = self.tests.entry(name.to_owned()).or_default();
            // A test that is left out says why: what it would show does not hold yet.
            result.open |= outcome.starts_with("ignored");
            result.failed |= outcome != "ok";
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.output_of = Some(name.to_owned());
        } else if let (Some(why), Some(name)) = (line.strip_prefix(NOT_RUN), &self.output_of)
            && let Some(result) = self.tests.get_mut(name)
        {
            result.not_run = Some(why.to_owned());
        } else if line.starts_with("test result:") {
            self.output_of = None;
        }
    }

    /// Whether a line is what a failed test has said.
    pub(super) fn is_of_a_failure(&self, line: &str) -> bool {
        let of = self.output_of.as_ref().and_then(|name| self.tests.get(name));
        of.is_some_and(|result| result.failed) && !line.is_empty()
    }

    /// The tests of a row.
    pub(super) fn of_row(&self, prefix: &str) -> Vec<Test<'_>> {
        let tests = self.tests.iter().filter(|(name, _)| is_of_row(name, prefix));
        tests
            .map(|(name, result)| {
                let Result { failed, open, not_run } = result;
                Test { name, failed: *failed, open: *open, not_run: not_run.as_deref() }
            })
            .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    pub(super) fn any_failed(&self) -> bool {
        self.tests.values().any(|result| result.failed)
    }
}

/// Whether a test's name, without modules, begins with a row's prefix, or with other rows' and then it:
/// `f03_f04_a_test` is of two rows.
fn is_of_row(name: &str, prefix: &str) -> bool {
    let mut rest = name.rsplit("::").next().unwrap_or(name);
    loop {
        if rest.starts_with(prefix) {
            return true;
        }
        match rest.split_at_checked(prefix.len()) {
            Some((row, after)) if row.starts_with('f') && row.ends_with('_') => rest = after,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_what_failed_and_what_did_not_run_are_told_apart() {
        let output = "\nrunning 4 tests\ntest f01_a ... ok\ntest f04_d ... ignored, open: why\ntest deep::f01_b ... FAILED\ntest f02_c ... ok\n\
                      \nsuccesses:\n\n---- f02_c stdout ----\nDID NOT RUN: it needs root\n\n\
                      successes:\n    f01_a\n    f02_c\n\ntest result: FAILED. 2 passed; 1 failed;\n";
        let mut results = Results::default();
        output.lines().for_each(|line| results.take(line));
        let of = |prefix| -> Vec<(String, bool, Option<String>)> {
            let tests = results.of_row(prefix).into_iter();
            tests.map(|test| (test.name.to_owned(), test.failed, test.not_run.map(str::to_owned))).collect()
        };
        assert_eq!(of("f01_"), [("deep::f01_b".to_owned(), true, None), ("f01_a".to_owned(), false, None)]);
        assert_eq!(of("f02_"), [("f02_c".to_owned(), false, Some("it needs root".to_owned()))]);
        let left_out = &results.of_row("f04_")[0];
        assert!(left_out.failed && left_out.open);
        assert!(of("f03_").is_empty() && results.any_failed());
        assert!(is_of_row("x::f03_f04_a_b", "f04_") && !is_of_row("f03_a_f04_b", "f04_"));
    }
}
