//! One SVG per testbed, load and figure: one column per subject, with the median as a bar and every round as
//! a dot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;

use crate::report::pivot::{Pivot, Row};
use crate::scenario::Better;

/// Size of a picture in pixels.
const SIZE: (u32, u32) = (560, 320);

/// Half the width of a median bar, in columns.
const HALF_BAR: f64 = 0.3;

/// Writes the pictures into `dir`, creating it if needed. Returns their paths.
pub fn write(pivot: &Pivot, dir: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut written = Vec::new();
    for row in &pivot.rows {
        let path = dir.join(file_name(row));
        std::fs::write(&path, svg(&pivot.subjects, row)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

/// Returns a name such as `I-tcp-1-gbit_per_s.svg`; characters unsuitable for a file name become dashes.
fn file_name(row: &Row) -> String {
    let name = format!("{}-{}-{}", row.testbed, row.load, row.metric.key);
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    name.chars().map(safe).collect::<String>() + ".svg"
}

fn svg(subjects: &[String], row: &Row) -> Result<String> {
    let mut text = String::new();
    draw(subjects, row, &mut text).map_err(|e| anyhow!("cannot draw {}: {e}", file_name(row)))?;
    Ok(text)
}

fn draw(subjects: &[String], row: &Row, into: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(into, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let largest = row.cells.iter().flatten().map(|cell| cell.summary.max).fold(0.0, f64::max);
    // The axis starts at zero, so that the bars are proportional to the numbers.
    let top = if largest > 0.0 { largest * 1.1 } else { 1.0 };
    let good = if row.metric.better == Better::Higher { "more" } else { "less" };
    let title = format!("{} {}: {} ({good} is better)", row.testbed, row.load, row.metric.label);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.5..subjects.len() as f64 - 0.5, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 15))
        .x_labels(subjects.len() * 2 + 1)
        .x_label_formatter(&|x| label(subjects, *x))
        .y_label_formatter(&|y| format!("{y:.*}", row.metric.decimals))
        .draw()?;
    for (column, cell) in row.cells.iter().enumerate() {
        let Some(cell) = cell else { continue };
        let x = column as f64;
        let bar = [(x - HALF_BAR, 0.0), (x + HALF_BAR, cell.summary.median)];
        chart.draw_series([Rectangle::new(bar, Palette99::pick(column).mix(0.5).filled())])?;
        let dots = cell.values.iter().filter(|(_, value)| value.is_finite());
        chart.draw_series(dots.map(|(_, value)| Circle::new((x, *value), 3, BLACK.mix(0.6).filled())))?;
    }
    root.present()?;
    Ok(())
}

/// Returns the subject's name at the middle of its column, nothing elsewhere.
fn label(subjects: &[String], x: f64) -> String {
    let column = x.round();
    if (x - column).abs() > 0.01 || column < 0.0 {
        return String::new();
    }
    subjects.get(column as usize).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw;
    use crate::report::pivot::pivot;

    #[test]
    fn each_row_is_a_picture_with_every_subject_and_round() {
        let raw = raw::parse(include_str!("../../fixtures/two_rounds.json")).unwrap();
        let pivot = pivot(&raw);
        let dir = tempfile::tempdir().unwrap();
        let paths = write(&pivot, &dir.path().join("plots")).unwrap();
        assert_eq!(paths.len(), pivot.rows.len());
        assert!(paths[0].ends_with("I-tcp-1-gbit_per_s.svg"));
        let svg = std::fs::read_to_string(&paths[0]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for subject in &pivot.subjects {
            assert!(svg.contains(subject.as_str()), "no {subject} in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn only_columns_have_labels() {
        let subjects = ["a".to_owned(), "b".to_owned()];
        assert_eq!(label(&subjects, 1.0), "b");
        assert_eq!(label(&subjects, 0.5), "");
        assert_eq!(label(&subjects, -1.0), "");
        assert_eq!(label(&subjects, 2.0), "");
    }
}
