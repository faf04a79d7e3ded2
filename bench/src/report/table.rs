//! The pivot as an aligned table.

use comfy_table::{CellAlignment, Table, presets};

use crate::report::Style;
use crate::report::pivot::{Cell, Pivot};
use crate::report::stats::Summary;

/// The cell of a subject without a figure.
const NOTHING: &str = "–";

/// Columns before the first subject: testbed, load, figure.
const KEYS: [&str; 3] = ["testbed", "load", "figure"];

/// Renders the table without a newline at the end.
pub fn render(pivot: &Pivot, style: Style) -> String {
    let mut table = Table::new();
    table.load_preset(match style {
        Style::Text => presets::UTF8_FULL_CONDENSED,
        Style::Markdown => presets::ASCII_MARKDOWN,
    });
    let mut header: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    for (i, subject) in pivot.subjects.iter().enumerate() {
        header.push(subject.clone());
        if has_ratio(pivot, i) {
            header.push("× (min..max)".to_owned());
        }
    }
    let columns = header.len();
    table.set_header(header);
    for row in &pivot.rows {
        let mut line = vec![row.testbed.clone(), row.load.clone(), row.metric.label.to_owned()];
        for (i, cell) in row.cells.iter().enumerate() {
            line.push(value(cell.as_ref(), row.metric.decimals));
            if has_ratio(pivot, i) {
                line.push(cell.as_ref().and_then(|c| c.ratio).map_or(NOTHING.to_owned(), ratio));
            }
        }
        table.add_row(line);
    }
    for column in KEYS.len()..columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn has_ratio(pivot: &Pivot, subject: usize) -> bool {
    pivot.rows.iter().any(|row| row.cells[subject].as_ref().is_some_and(|cell| cell.ratio.is_some()))
}

fn value(cell: Option<&Cell>, decimals: usize) -> String {
    cell.map_or(NOTHING.to_owned(), |cell| format!("{:.decimals$}", cell.summary.median))
}

/// Formats a ratio with two decimals, or three below 0.1: `0.57 (0.51..0.58)`, `0.021 (0.019..0.024)`.
fn ratio(ratio: Summary) -> String {
    let digits = if ratio.median < 0.1 { 3 } else { 2 };
    format!("{:.digits$} ({:.digits$}..{:.digits$})", ratio.median, ratio.min, ratio.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ratios_keep_their_digits() {
        let summary = |median| Summary { median, min: median / 2.0, max: median * 2.0, count: 3 };
        assert_eq!(ratio(summary(0.5)), "0.50 (0.25..1.00)");
        assert_eq!(ratio(summary(0.02)), "0.020 (0.010..0.040)");
    }
}
