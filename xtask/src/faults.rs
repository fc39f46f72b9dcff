//! `xtask faults [F07 ...]`: the failure table of `docs/failure-model.md` with what the tests say of each
//! row, from a run of all tests that are named after rows (`f07_...`).

mod results;
mod table;

use results::Results;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use table::Row;

const TABLE: &str = "docs/failure-model.md";

/// Runs it.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let wanted: Vec<String> = arguments.map(|id| id.to_uppercase()).collect();
    let text = std::fs::read_to_string(TABLE)
        .map_err(|e| format!("{TABLE}: {e}; run this at the top of the repository"))?;
    let rows = table::rows(&text);
    if let Some(unknown) = wanted.iter().find(|id| rows.iter().all(|row| row.id != **id)) {
        return Err(format!("{TABLE} has no row {unknown}"));
    }
    let chosen: Vec<Row> =
        rows.into_iter().filter(|row| wanted.is_empty() || wanted.contains(&row.id)).collect();
    let results = run_tests(&chosen)?;
    let verdicts: BTreeMap<&str, Verdict> =
        chosen.iter().map(|row| (row.id.as_str(), Verdict::of(row, &results))).collect();
    println!("| id | fault | tests | result |\n|---|---|---|---|");
    for row in &chosen {
        let verdict = &verdicts[row.id.as_str()];
        println!("| {} | {} | {} | {} |", row.id, row.fault, verdict.tests, verdict.text);
    }
    let failing: Vec<&str> =
        verdicts.iter().filter(|(_, verdict)| !verdict.holds).map(|(id, _)| *id).collect();
    match failing[..] {
        [] => Ok(()),
        _ => Err(format!("not shown to hold: {}", failing.join(", "))),
    }
}

/// What is to be said of a row.
#[derive(Debug)]
struct Verdict {
    tests: usize,
    text: String,
    holds: bool,
}

impl Verdict {
    fn of(row: &Row, results: &Results) -> Self {
        let tests = results.of_row(&row.test_prefix());
        let say = |test: &results::Test<'_>| {
            let open = if test.open { " (open)" } else { "" };
            format!("{}{open}", test.name)
        };
        let failed: Vec<String> = tests.iter().filter(|test| test.failed).map(say).collect();
        let not_run: Vec<&str> = tests.iter().filter_map(|test| test.not_run).collect();
        let (text, holds) = if !failed.is_empty() {
            (format!("**fail**: {}", failed.join(", ")), false)
        } else if tests.is_empty() {
            match &row.not_yet {
                Some(why) => (format!("did not run: {why}"), true),
                None => ("**no test**".to_owned(), false),
            }
        } else if not_run.len() == tests.len() {
            (format!("did not run: {}", not_run[0]), true)
        } else if let Some(why) = not_run.first() {
            (format!("pass, but {} did not run: {why}", not_run.len()), true)
        } else {
            ("pass".to_owned(), true)
        };
        Self { tests: tests.len(), text, holds }
    }
}

/// Runs the rows' tests, telling of each as it ends.
fn run_tests(rows: &[Row]) -> Result<Results, String> {
    let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let mut command = Command::new(cargo);
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    // Doc tests bear no names.
    command.args(["--lib", "--bins", "--tests", "--", "--show-output"]);
    command.args(rows.iter().map(Row::test_prefix));
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cannot start {command:?}: {e}"))?;
    let output = child.stdout.take().ok_or("cargo's output is piped")?;
    let mut results = Results::default();
    for line in BufReader::new(output).lines() {
        let line = line.map_err(|e| format!("cargo's output: {e}"))?;
        if line.starts_with("test ") || line.contains("panicked at") || results.is_of_a_failure(&line) {
            eprintln!("{line}");
        }
        results.take(&line);
    }
    let status = child.wait().map_err(|e| format!("cargo: {e}"))?;
    if results.is_empty() {
        return Err(format!("no test was run: {command:?} ended with {status}"));
    }
    // A test's end is in the results; cargo's own failure (a suite that died, a build) is not.
    if !status.success() && !results.any_failed() {
        return Err(format!("{command:?} ended with {status}, and no test failed"));
    }
    Ok(results)
}
