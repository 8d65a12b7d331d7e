//! Columns by tabs: the layout of Go's `text/tabwriter` with spaces for padding.

/// Layout of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) min_width: usize,
    pub(crate) padding: usize,
}

/// Docker's lists.
pub(crate) const LIST: Layout = Layout { min_width: 10, padding: 3 };
/// `top`, `version`.
pub(crate) const WIDE: Layout = Layout { min_width: 20, padding: 3 };

/// Aligns the cells of a text whose lines have tabs between cells. The last cell of a line is
/// never padded.
pub(crate) fn align(text: &str, layout: Layout) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut aligner = Aligner { lines: &lines, layout, widths: Vec::new(), out: String::new() };
    aligner.block(0, lines.len());
    aligner.out.pop();
    aligner.out
}

struct Aligner<'a> {
    lines: &'a [Vec<&'a str>],
    layout: Layout,
    widths: Vec<usize>,
    out: String,
}

impl Aligner<'_> {
    /// Finds the runs of lines that have a cell in the next column, and gives each a width.
    fn block(&mut self, start: usize, end: usize) {
        let column = self.widths.len();
        let mut printed = start;
        let mut at = start;
        while at < end {
            if column + 1 >= self.lines[at].len() {
                at += 1;
                continue;
            }
            self.print(printed, at);
            let first = at;
            let mut width = self.layout.min_width;
            while at < end && column + 1 < self.lines[at].len() {
                let cell = self.lines[at][column].chars().count();
                width = width.max(cell + self.layout.padding);
                at += 1;
            }
            self.widths.push(width);
            self.block(first, at);
            self.widths.pop();
            printed = at;
        }
        self.print(printed, end);
    }

    fn print(&mut self, start: usize, end: usize) {
        for line in &self.lines[start..end] {
            for (i, cell) in line.iter().enumerate() {
                self.out.push_str(cell);
                if let Some(width) = self.widths.get(i) {
                    let pad = width.saturating_sub(cell.chars().count());
                    self.out.extend(std::iter::repeat_n(' ', pad));
                }
            }
            self.out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned() {
        let text = "A\tBB\tC\nlonger than ten\tb\tc\nx\t\tlast\n";
        assert_eq!(
            align(text, LIST),
            "A                 BB        C\nlonger than ten   b         c\nx                           last\n"
        );
        assert_eq!(align("no cells\n", LIST), "no cells\n");
        assert_eq!(align("a\tb\n\nccccccccccc\td", LIST), "a         b\n\nccccccccccc   d");
    }
}
