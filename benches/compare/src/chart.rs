//! Charts of what a comparison came to, as SVG: throughput, latency and CPU time over clients, ranges or nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flotilla_benches::cluster::Result;
use plotters::prelude::*;

use crate::cell::Measured;
use crate::results::{Cell, Results, Which};

const SIZE: (u32, u32) = (800, 500);
const COLORS: &[RGBColor] = &[
    RGBColor(0, 95, 175),
    RGBColor(215, 95, 0),
    RGBColor(0, 135, 95),
    RGBColor(175, 0, 95),
    RGBColor(95, 95, 95),
    RGBColor(135, 95, 0),
    RGBColor(95, 0, 215),
    RGBColor(0, 135, 175),
];

/// What a figure is drawn over.
#[derive(Clone, Copy)]
struct Axis {
    name: &'static str,
    of: fn(&Which) -> f64,
}

const AXES: &[Axis] = &[
    Axis { name: "clients", of: |which| which.clients as f64 },
    Axis { name: "ranges", of: |which| f64::from(which.ranges) },
    Axis { name: "nodes", of: |which| which.nodes as f64 },
];

/// What follows the system's name, and what is drawn of it.
type Drawn = (&'static str, fn(&Measured) -> f64);

/// What is drawn.
struct Figure {
    file: &'static str,
    title: &'static str,
    lines: &'static [Drawn],
}

const FIGURES: &[Figure] = &[
    Figure { file: "throughput", title: "operations per second", lines: &[("", |of| of.per_second)] },
    Figure { file: "latency", title: "latency, µs", lines: &[(", p50", |of| of.p50_us), (", p99", |of| of.p99_us)] },
    Figure { file: "cpu", title: "CPU time of all servers per operation, µs", lines: &[("", |of| of.server_us)] },
];

/// A line: its name, and its points in order.
type Line = (String, Vec<(f64, f64)>);

/// Draws all that there is to draw: for each load, each figure over each axis with more than one point. Returns the files.
pub fn draw(results: &Results, directory: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let mut files = Vec::new();
    for axis in AXES {
        let mut loads: BTreeMap<String, Vec<&Cell>> = BTreeMap::new();
        for cell in &results.cells {
            loads.entry(file_name(&cell.which, *axis)).or_default().push(cell);
        }
        for (load, cells) in loads {
            for figure in FIGURES {
                let lines = lines(&cells, *axis, figure);
                if lines.iter().all(|(_, points)| points.len() < 2) {
                    continue;
                }
                let file = directory.join(format!("{load}-{}.svg", figure.file));
                let title = format!("{}: {}", cells[0].which.workload.name(), figure.title);
                draw_lines(&file, &title, axis.name, &lines, figure.lines.len())?;
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// What the cells of a chart have in common.
fn file_name(which: &Which, axis: Axis) -> String {
    let workload = which.workload.name().to_lowercase().replace(' ', "-");
    let mut name = format!("{workload}-over-{}-{}b", axis.name, which.value_bytes);
    for (other, value) in [("clients", which.clients as u64), ("nodes", which.nodes as u64)] {
        if other != axis.name {
            name.push_str(&format!("-{value}-{other}"));
        }
    }
    name
}

fn lines(cells: &[&Cell], axis: Axis, figure: &Figure) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let ranges: BTreeSet<u32> =
        cells.iter().map(|cell| cell.which).filter(Which::has_ranges).map(|of| of.ranges).collect();
    for cell in cells {
        let several = axis.name != "ranges" && ranges.len() > 1 && cell.which.has_ranges();
        let ranges = if several { format!(", {} ranges", cell.which.ranges) } else { String::new() };
        for (suffix, value) in figure.lines {
            let name = format!("{}{ranges}{suffix}", cell.which.system.name());
            let point = ((axis.of)(&cell.which), cell.spread(value).median);
            match lines.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push(point),
                None => lines.push((name, vec![point])),
            }
        }
    }
    for (_, points) in &mut lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// Both axes are logarithmic: what doubles looks the same everywhere. So many lines belong to each system: they have one
/// colour, which pales from line to line.
fn draw_lines(file: &Path, title: &str, axis: &str, lines: &[Line], of_each: usize) -> Result<()> {
    let points = lines.iter().flat_map(|(_, points)| points);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (left, right) = bounds(&mut points.clone().map(|point| point.0));
    let (low, high) = bounds(&mut points.map(|point| point.1));
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((left * 0.9..right * 1.1).log_scale(), (low * 0.7..high * 1.4).log_scale())?;
    chart.configure_mesh().x_desc(axis).light_line_style(RGBColor(240, 240, 240)).draw()?;
    for (at, (name, points)) in lines.iter().enumerate() {
        let color = COLORS[at / of_each % COLORS.len()].mix(1.0 - (at % of_each) as f64 / of_each as f64);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::load::workload::Workload;
    use crate::results::tests::{measured, which};
    use crate::store::System;

    use super::*;

    #[test]
    fn a_figure_is_drawn_where_an_axis_has_more_than_one_point() {
        let mut results = Results::default();
        for system in [System::Stream, System::Etcd, System::ZookeeperSync] {
            for clients in [1, 16, 256] {
                results.add(Which { clients, ..which(system) }, measured(clients as f64 * 100.0));
            }
        }
        results.add(Which { workload: Workload::Get, ..which(System::Etcd) }, measured(1.0));
        let directory = tempfile::tempdir().expect("a directory");
        let mut files = draw(&results, directory.path()).expect("drawn");
        files.iter_mut().for_each(|file| *file = file.file_name().unwrap_or_default().into());
        let wanted = ["throughput", "latency", "cpu"].map(|of| format!("put-over-clients-256b-3-nodes-{of}.svg"));
        assert_eq!(files, wanted.map(PathBuf::from));
        let text = std::fs::read_to_string(directory.path().join(&files[0])).expect("written");
        assert!(text.contains("etcd, leader") && text.contains("ZooKeeper, leader, sync before gets"), "{text}");
        assert_eq!(text.matches("stroke=\"#00875F\"").count(), 2, "the third system's line, and its legend: {text}");
    }
}
