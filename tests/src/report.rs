//! What an experiment leaves behind: a folder with `report.md` (text, tables, plots), the plots as PNG files, and
//! `figures.json` (the same figures for programs).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::plot::Plot;

/// A report in the making.
pub struct Report {
    text: String,
    plots: Vec<(String, Plot)>,
    results: serde_json::Value,
    failure: Option<String>,
}

/// The columns of a table: on the left what a row is about, on the right its figures.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these columns; the first one is text, the others are figures.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Table {
        Table { header: header.into_iter().map(Into::into).collect(), rows: vec![] }
    }

    /// One more row.
    ///
    /// # Panics
    ///
    /// If it does not have as many cells as the table has columns.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.header.len(), "cells of {cells:?}");
        self.rows.push(cells);
    }

    /// In Markdown, with columns of equal width so that it is a table in a terminal, too.
    pub fn markdown(&self) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let length = |cell: &String| cell.chars().count();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| lines().map(|line| length(&line[column])).max().unwrap_or_default().max(3))
            .collect();
        let mut text = String::new();
        for (number, line) in lines().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - length(cell));
                let _ =
                    if column == 0 { write!(text, "| {cell}{padding} ") } else { write!(text, "| {padding}{cell} ") };
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(*width - usize::from(column > 0));
                    let _ = if column == 0 { write!(text, "| {dashes} ") } else { write!(text, "| {dashes}: ") };
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

impl Report {
    /// With a title. `results` is what `figures.json` says.
    pub fn new(title: &str, results: &impl Serialize) -> Result<Report> {
        Ok(Report {
            text: format!("# {title}\n"),
            plots: vec![],
            results: serde_json::to_value(results)?,
            failure: None,
        })
    }

    /// What must never be was seen: the experiment fails once its report is written.
    pub fn fail(&mut self, why: String) {
        self.failure = Some(why);
    }

    /// What must never be, and was seen.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A heading of a section.
    pub fn heading(&mut self, heading: &str) {
        let _ = write!(self.text, "\n## {heading}\n");
    }

    /// A paragraph, in Markdown.
    pub fn text(&mut self, paragraph: &str) {
        let _ = write!(self.text, "\n{}\n", paragraph.trim());
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        let _ = write!(self.text, "\n{}", table.markdown());
    }

    /// A plot, in the file `NAME.png`.
    pub fn plot(&mut self, name: &str, plot: Plot) {
        let _ = write!(self.text, "\n![{}]({name}.png)\n", plot.title);
        self.plots.push((name.to_owned(), plot));
    }

    /// The text so far, in Markdown.
    pub fn markdown(&self) -> &str {
        &self.text
    }

    /// Writes everything into a folder, which may be there already. `experiment` is its name, `quick` whether it was
    /// the short run.
    pub fn write(&self, dir: &Path, experiment: &str, quick: bool) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        for (name, plot) in &self.plots {
            plot.draw(&dir.join(format!("{name}.png")))?;
        }
        let figures = serde_json::json!({ "experiment": experiment, "quick": quick, "results": self.results });
        let file = |name: &str, content: String| {
            let path = dir.join(name);
            fs::write(&path, content).with_context(|| path.display().to_string())
        };
        file("figures.json", serde_json::to_string_pretty(&figures)? + "\n")?;
        file("report.md", self.text.clone())
    }
}

/// A figure with three digits that count.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Axis, Mark, Scale, Series};

    #[test]
    fn a_report_is_a_text_its_plots_and_its_figures() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut report = Report::new("Title", &[1.5, 2.5]).expect("figures");
        report.heading("Part");
        report.text("What was run.");
        let mut table = Table::new(["trace", "rms, µs"]);
        table.row(["lan", "1.5"]);
        report.table(&table);
        let axis = || Axis::new("x", Scale::Linear);
        let series =
            vec![Series { label: String::new(), mark: Mark::Line, colour: 0, points: vec![(0.0, 1.0), (1.0, 2.0)] }];
        report.plot("line", Plot { title: "A line".to_owned(), x: axis(), y: axis(), series });
        let out = dir.path().join("a/b");
        report.write(&out, "name", true).expect("written");
        let text = fs::read_to_string(out.join("report.md")).expect("a report");
        assert_eq!(
            text,
            "# Title\n\n## Part\n\nWhat was run.\n\n| trace | rms, µs |\n| ----- | ------: |\n| lan   |     1.5 |\n\n\
             ![A line](line.png)\n"
        );
        let figures: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("figures.json")).expect("figures")).expect("JSON");
        assert_eq!(figures, serde_json::json!({ "experiment": "name", "quick": true, "results": [1.5, 2.5] }));
        assert!(out.join("line.png").exists());
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([0.1234, 9.999, 12.345, 99.96, 1234.5].map(figure), ["0.12", "10.0", "12.3", "100", "1234"]);
    }
}
