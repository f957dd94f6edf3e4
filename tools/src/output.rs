//! Where results go: tables for people, JSON for programs, and a status line for a terminal.
//!
//! A table takes the width of the terminal: columns that may be shortened are, the widest first. In a pipe nothing is
//! shortened.

use crate::cli::Format;
use crate::failure::Failure;
use serde_json::Value;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Standard output.
pub(crate) struct Out {
    writer: BufWriter<io::Stdout>,
    format: Format,
    is_terminal: bool,
}

impl Out {
    pub(crate) fn new(format: Format) -> Out {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        Out { writer: BufWriter::with_capacity(64 << 10, stdout), format, is_terminal }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether a person reads it as it comes.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.writer.write_all(bytes).map_err(|error| Failure::io("standard output", error))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(|error| Failure::io("standard output", error))
    }

    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.write(text.as_bytes())?;
        self.write(b"\n")
    }

    pub(crate) fn json(&mut self, value: &Value) -> Result<(), Failure> {
        let text = if self.is_terminal { format!("{value:#}") } else { value.to_string() };
        self.line(&text)
    }

    pub(crate) fn table(&mut self, table: &Table) -> Result<(), Failure> {
        let width = self.is_terminal.then(|| terminal_width(&io::stdout())).flatten();
        self.write(table.render(width).as_bytes())
    }
}

fn terminal_width(terminal: &impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// Text that may be shortened.
    Text(&'static str),
    /// Text that is of no use when it is shortened.
    Whole(&'static str),
    /// To the right.
    Number(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Text(title) | Column::Whole(title) | Column::Number(title) => title,
        }
    }
}

/// Rows under titles.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// The least that a shortened column keeps.
const TEXT_WIDTH_MIN: usize = 8;
const GAP: &str = "  ";

impl Table {
    pub(crate) fn new(columns: &[Column]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a row has a cell for each column");
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// In at most so many characters to a line, as far as shortening helps.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let widths = self.widths(width.unwrap_or(usize::MAX));
        let titles: Vec<String> = self.columns.iter().map(|column| column.title().to_owned()).collect();
        let mut out = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, column), width) in row.iter().zip(&self.columns).zip(&widths) {
                if !line.is_empty() {
                    line.push_str(GAP);
                }
                let cell = shorten(cell, *width);
                let padding = " ".repeat(width - cell.chars().count());
                match column {
                    Column::Number(_) => line.extend([padding.as_str(), cell.as_str()]),
                    _ => line.extend([cell.as_str(), padding.as_str()]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn widths(&self, limit: usize) -> Vec<usize> {
        let natural = |index: usize| {
            let cells = self.rows.iter().map(|row| row[index].chars().count());
            cells.chain([self.columns[index].title().chars().count()]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(natural).collect();
        let gaps = GAP.len() * self.columns.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > limit {
            let texts =
                self.columns.iter().enumerate().filter(|(_, column)| matches!(column, Column::Text(_)));
            let widest = texts.map(|(index, _)| index).max_by_key(|index| widths[*index]);
            match widest {
                Some(index) if widths[index] > TEXT_WIDTH_MIN => widths[index] -= 1,
                _ => break,
            }
        }
        widths
    }
}

fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// What would move the cursor or change the terminal is not printed as it is.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// How much of a whole, as a bar of `width` characters.
pub(crate) fn bar(part: i64, whole: i64, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    if whole <= 0 || part <= 0 {
        return String::new();
    }
    let eighths = ((part.min(whole) as f64 / whole as f64) * (width * 8) as f64).ceil() as usize;
    let mut out = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        out.push(EIGHTHS[eighths % 8]);
    }
    out
}

/// A line on standard error that is written over and over, where that is a terminal.
pub(crate) struct StatusLine {
    is_terminal: bool,
    shown: bool,
    next: Instant,
}

impl StatusLine {
    /// Between two renewals.
    const INTERVAL: Duration = Duration::from_millis(250);

    pub(crate) fn new() -> StatusLine {
        StatusLine {
            is_terminal: io::stderr().is_terminal(),
            shown: false,
            next: Instant::now() + StatusLine::INTERVAL,
        }
    }

    /// Whether anybody sees it.
    pub(crate) fn is_visible(&self) -> bool {
        self.is_terminal
    }

    /// Whether it is time to show something new.
    pub(crate) fn is_due(&self) -> bool {
        self.is_terminal && Instant::now() >= self.next
    }

    pub(crate) fn show(&mut self, text: &str) {
        let width = terminal_width(&io::stderr()).unwrap_or(80);
        let _ = write!(io::stderr(), "\r\x1b[K{}", shorten(text, width.saturating_sub(1)));
        self.shown = true;
        self.next = Instant::now() + StatusLine::INTERVAL;
    }

    /// Makes room for other output.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[Column::Text("TOPIC"), Column::Number("N"), Column::Whole("STATE")]);
        table.row(vec!["a-rather-long-name-of-a-topic".into(), "5".into(), "ok".into()]);
        table.row(vec!["b\x1b[2J".into(), "12,345".into(), String::new()]);
        table
    }

    #[test]
    fn a_table_takes_what_it_needs() {
        let expected = "\
TOPIC                               N  STATE
a-rather-long-name-of-a-topic       5  ok
b\u{fffd}[2J                          12,345
";
        assert_eq!(table().render(None), expected);
        assert_eq!(table().render(Some(100)), expected);
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let expected = "\
TOPIC               N  STATE
a-rather-lon…       5  ok
b\u{fffd}[2J          12,345
";
        assert_eq!(table().render(Some(28)), expected);
        // Below what is of use it is left to wrap.
        assert_eq!(table().render(Some(5)).lines().next(), Some("TOPIC          N  STATE"));
    }

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!(bar(0, 100, 8), "");
        assert_eq!(bar(1, 10_000, 8), "▏");
        assert_eq!(bar(50, 100, 8), "████");
        assert_eq!(bar(55, 100, 8), "████▌");
        assert_eq!(bar(100, 100, 8), "████████");
        assert_eq!(bar(300, 100, 4), "████");
        assert_eq!(bar(5, 0, 4), "");
    }
}
