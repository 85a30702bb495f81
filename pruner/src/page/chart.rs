//! Drawings as SVG. Colours are stand-ins that become classes, so that the page's style, light or dark, decides.

use super::escape;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A colour of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Ink,
    Muted,
    Line,
    Track,
    Kept,
    Floor,
    Empty,
    Dense,
}

impl Colour {
    const ALL: [Colour; 8] = [
        Colour::Ink,
        Colour::Muted,
        Colour::Line,
        Colour::Track,
        Colour::Kept,
        Colour::Floor,
        Colour::Empty,
        Colour::Dense,
    ];

    /// Its name in the style.
    pub fn name(self) -> &'static str {
        match self {
            Colour::Ink => "ink",
            Colour::Muted => "muted",
            Colour::Line => "line",
            Colour::Track => "track",
            Colour::Kept => "kept",
            Colour::Floor => "floor",
            Colour::Empty => "empty",
            Colour::Dense => "dense",
        }
    }

    fn stand_in(self) -> RGBColor {
        RGBColor(0x10, 0x20, 0x30 + self as u8)
    }
}

/// One line of a bar chart.
pub struct Row {
    pub label: String,
    /// Bars below each other: their length from 0 to 1, and their colour.
    pub bars: Vec<(f64, Colour)>,
    /// What stands behind the bars, and its colour.
    pub note: (String, Colour),
}

const WIDTH: i32 = 960;
const LABELS: i32 = 300;
const NOTES: i32 = 190;

/// Horizontal bars, each on a track of full length.
pub fn bars(id: &str, title: &str, rows: &[Row]) -> String {
    let lanes = rows.iter().map(|r| r.bars.len()).max().unwrap_or(1) as i32;
    let height = 10 + 10 * lanes;
    let all = height * rows.len() as i32 + 4;
    let end = WIDTH - NOTES;
    svg(id, title, (WIDTH, all), |area| {
        for (i, row) in (0..).zip(rows) {
            let top = i * height + 4;
            let middle = top + 5 * lanes;
            let label = shortened(&row.label, 44);
            text(
                area,
                (LABELS - 12, middle),
                &label,
                Colour::Ink,
                HPos::Right,
            )?;
            for (lane, &(length, colour)) in (0..).zip(&row.bars) {
                let y = top + 1 + lane * 10;
                let right =
                    LABELS + (f64::from(end - LABELS) * length.clamp(0.0, 1.0)).round() as i32;
                rectangle(area, [(LABELS, y), (end, y + 8)], Colour::Track)?;
                // What is not nothing is seen.
                let right = if length > 0.0 {
                    right.max(LABELS + 2)
                } else {
                    right
                };
                if right > LABELS {
                    rectangle(area, [(LABELS, y), (right, y + 8)], colour)?;
                }
            }
            let (note, colour) = &row.note;
            text(area, (end + 12, middle), note, *colour, HPos::Left)?;
        }
        Ok(())
    })
}

/// A line over epochs.
pub struct Series {
    pub colour: Colour,
    pub points: Vec<(f64, f64)>,
}

/// Lines over epochs or rounds, on an axis that holds them all; `shares` are at most 1, and shown as percentages.
pub fn lines(id: &str, title: &str, along: &str, shares: bool, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|s| &s.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let all = points().map(of);
        all.fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)))
    };
    let (first, last) = range(|p| p.0);
    let (low, high) = range(|p| p.1);
    let room = ((high - low) * 0.12).max(0.005);
    let (low, high) = match shares {
        true => ((low - room).max(0.0), (high + room).min(1.0)),
        false => ((low - room).max(0.0), high + room),
    };
    svg(id, title, (470, 260), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(12)
            .margin_right(14)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d(first..last.max(first + 1.0), low..high)?;
        let style = ("sans-serif", 15)
            .into_font()
            .color(&Colour::Muted.stand_in());
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Colour::Line.stand_in())
            .axis_style(Colour::Line.stand_in())
            .label_style(style)
            .x_desc(along)
            .x_labels(8)
            .y_labels(5)
            // There is nothing between two epochs.
            .x_label_formatter(&|x| match (x - x.round()).abs() < 1e-6 {
                true => format!("{x:.0}"),
                false => String::new(),
            })
            .y_label_formatter(&|y| match shares {
                true => format!("{:.1} %", y * 100.0),
                false => format!("{y:.3}"),
            })
            .draw()?;
        for s in series {
            let style = s.colour.stand_in().stroke_width(2);
            chart.draw_series(LineSeries::new(s.points.iter().copied(), style))?;
            let dot = |&p: &(f64, f64)| Circle::new(p, 3, s.colour.stand_in().filled());
            chart.draw_series(s.points.iter().map(dot))?;
        }
        Ok(())
    })
}

fn rectangle(area: &Area<'_>, corners: [(i32, i32); 2], colour: Colour) -> Drawn {
    Ok(area.draw(&Rectangle::new(corners, colour.stand_in().filled()))?)
}

fn text(area: &Area<'_>, at: (i32, i32), what: &str, colour: Colour, side: HPos) -> Drawn {
    let style = ("sans-serif", 15).into_font().color(&colour.stand_in());
    let style = style.pos(Pos::new(side, VPos::Center));
    Ok(area.draw(&Text::new(what.to_owned(), at, style))?)
}

/// The end of a long name, where names of layers differ.
fn shortened(name: &str, most: usize) -> String {
    let count = name.chars().count();
    match count > most {
        true => format!(
            "…{}",
            name.chars().skip(count - most + 1).collect::<String>()
        ),
        false => name.to_owned(),
    }
}

/// A drawing with a title for those who do not see it; an empty string where it could not be drawn.
fn svg(
    id: &str,
    title: &str,
    (width, height): (i32, i32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> String {
    let mut drawn = String::new();
    {
        let size = (width.max(1) as u32, height.max(1) as u32);
        let area = SVGBackend::with_string(&mut drawn, size).into_drawing_area();
        // Nothing but memory is written to.
        if draw(&area).and_then(|()| Ok(area.present()?)).is_err() {
            return String::new();
        }
    }
    for colour in Colour::ALL {
        let RGBColor(r, g, b) = colour.stand_in();
        for (property, class) in [("fill", 'f'), ("stroke", 's')] {
            let attribute = format!("{property}=\"#{r:02X}{g:02X}{b:02X}\"");
            let name = colour.name();
            drawn = drawn.replace(&attribute, &format!("class=\"{class}-{name}\""));
        }
    }
    let inside = drawn.split_once('>').map_or("", |parts| parts.1);
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title id=\"{id}\">{}</title>{inside}",
        escape(title)
    )
}
