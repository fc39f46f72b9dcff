//! Tables for people and JSON for programs.

use crate::args::{Format, Output};
use crate::view::VolumeView;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// Prints to standard output; a reader that has gone away is no failure.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n"));
    if written.and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody reads standard output any more");
    }
}

/// Prints JSON.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say(&text),
        Err(error) => unreachable!("views are always JSON: {error}"),
    }
}

/// After a change: the volume for programs, one line for people.
pub(crate) fn announce(output: Output, volume: &VolumeView, line: &str) {
    match output.output {
        Format::Json => json(volume),
        Format::Table => say(line),
    }
}

/// A table without lines; columns whose header begins with `>` are aligned to the right.
pub(crate) fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers.iter().map(|header| header.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (column, header) in table.column_iter_mut().zip(headers) {
        column.set_padding((0, 2));
        if header.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "10 GiB".into()], vec!["longer".into(), "1 B".into()]];
        assert_eq!(table(&["NAME", ">SIZE"], rows), "NAME      SIZE\na       10 GiB\nlonger     1 B");
    }
}
