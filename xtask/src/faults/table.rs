//! The rows of the failure table, as the documentation has them.

/// A row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// `F07`.
    pub(super) id: String,
    pub(super) fault: String,
    /// Why there is no test of it, where there is none.
    pub(super) not_yet: Option<String>,
}

impl Row {
    /// What the names of its tests begin with.
    pub(super) fn test_prefix(&self) -> String {
        format!("{}_", self.id.to_lowercase())
    }
}

/// The rows of a table whose first column holds the ids, the second the faults, and the last what tests
/// them.
pub(super) fn rows(text: &str) -> Vec<Row> {
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> =
        line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let digits = cells.first()?.strip_prefix('F')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let not_yet = cells.last()?.strip_prefix("not yet").map(|why| format!("not yet{why}"));
    Some(Row { id: cells[0].to_owned(), fault: (*cells.get(1)?).to_owned(), not_yet })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_from_the_rest() {
        let text = "# Faults\n| id | fault | by |\n|---|---|---|\n| F07 | read error | `disks.rs` |\n\
                    | F33 | mixed versions | not yet: no release |\n| Fxx | no | no |\n";
        let rows = rows(text);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].test_prefix().as_str(), &rows[0].not_yet), ("f07_", &None));
        assert_eq!(rows[1].not_yet.as_deref(), Some("not yet: no release"));
    }
}
