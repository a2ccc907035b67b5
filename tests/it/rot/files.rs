//! Flips in each kind of file of a stopped node, and in random places.

use std::path::PathBuf;

use super::{Flip, Outcome, Scene, VICTIM};
use crate::support::rng::{Rng, seed};
use crate::support::used_bytes;

/// Kinds of files whose damage the start itself notices.
const NOTICED_AT_START: [&str; 5] = ["IDENTITY", "WATERMARK", "db/CURRENT", "db/MANIFEST-", ".log"];
/// Files that nobody relies on.
const RELIED_ON_BY_NOBODY: [&str; 6] = ["LOCK", "BALLAST", "TABLES", "db/IDENTITY", "db/OPTIONS-", "log/"];

fn is_of(name: &str, kind: &str) -> bool {
    match kind {
        ".log" => name.starts_with("db/") && name.ends_with(".log"),
        kind if kind.ends_with(['-', '/']) => name.starts_with(kind),
        kind => name == kind,
    }
}

/// A bit that counts. The last writes of a log may never have been synced, and the end of the MANIFEST looks the same.
fn flip_in(file: PathBuf, rng: &mut Rng) -> Flip {
    let at = rng.below((used_bytes(&file) / 2).max(1));
    Flip { file, at, bit: rng.below(8) as u8 }
}

#[test]
fn a_flipped_bit_in_any_file_is_noticed_or_harmless_and_never_served() {
    let mut rng = Rng::new(seed());
    let mut scene = Scene::new(&mut rng);
    scene.start_sound();
    scene.kill();
    for kind in NOTICED_AT_START {
        let files = scene.files(|name| is_of(name, kind));
        let largest = files.into_iter().max_by_key(|file| used_bytes(file));
        let flip = flip_in(largest.unwrap_or_else(|| panic!("there is no {kind}")), &mut rng);
        flip.apply();
        match scene.outcome() {
            Outcome::Noticed(words) => assert!(words.contains(flip.name()), "{flip:?}: {words}"),
            Outcome::Harmless => panic!("{flip:?}: the node serves"),
        }
        scene.put_back(&flip);
    }
    // All at once: the node starts, and is equal to the others.
    for kind in RELIED_ON_BY_NOBODY {
        for file in scene.files(|name| is_of(name, kind)) {
            Flip::anywhere(&file, &mut rng).iter().for_each(Flip::apply);
        }
    }
    match scene.outcome() {
        Outcome::Harmless => {}
        Outcome::Noticed(words) => panic!("{words}"),
    }
    tables(&mut scene, &mut rng);
    let flips = std::env::var("FLOTILLA_ROT_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    random(&mut scene, &mut rng, flips);
    scene.end();
}

/// Data blocks, and what lies behind them: filters, indexes, properties, the footer. Every byte counts.
fn tables(scene: &mut Scene, rng: &mut Rng) {
    for of_the_end in [false, true] {
        scene.start_sound();
        assert_eq!(scene.cluster.terminate(VICTIM), Some(0), "{}", scene.cluster.log(VICTIM));
        let files = scene.files(|name| name.ends_with(".sst"));
        let file = files.into_iter().max_by_key(|file| used_bytes(file));
        let file = file.expect("there are tables");
        let bytes = std::fs::metadata(&file).expect("it is there").len();
        let at = if of_the_end { bytes - 1 - rng.below(bytes.min(200)) } else { rng.below(bytes / 2) };
        let flip = Flip { file, at, bit: rng.below(8) as u8 };
        flip.apply();
        match scene.outcome() {
            Outcome::Noticed(words) => assert!(words.contains(flip.name()), "{flip:?}: {words}"),
            Outcome::Harmless => panic!("{flip:?}: a table is not what was written, and the node serves"),
        }
        // And again, whoever starts it.
        match scene.outcome() {
            Outcome::Noticed(words) => assert!(words.contains(flip.name()), "{flip:?}: {words}"),
            Outcome::Harmless => panic!("{flip:?}: the second start forgot what the first one saw"),
        }
        scene.put_back(&flip);
    }
}

/// Any bit of any file.
fn random(scene: &mut Scene, rng: &mut Rng, flips: u32) {
    let (mut noticed, mut harmless) = (0, 0);
    for round in 0..flips {
        scene.start_sound();
        if rng.below(2) == 0 {
            scene.kill();
        } else {
            assert_eq!(scene.cluster.terminate(VICTIM), Some(0), "{}", scene.cluster.log(VICTIM));
        }
        let files = scene.files(|_| true);
        let drawn = (0..100).find_map(|_| Flip::anywhere(&files[rng.below(files.len() as u64) as usize], rng));
        let flip = drawn.expect("not all files are empty");
        flip.apply();
        let outcome = scene.outcome();
        let name = flip.file.strip_prefix(scene.data()).unwrap_or(&flip.file).display();
        println!(
            "{round}: byte {} of {name}: {}",
            flip.at,
            match &outcome {
                Outcome::Noticed(_) => "noticed",
                Outcome::Harmless => "harmless",
            }
        );
        match outcome {
            Outcome::Noticed(_) => {
                noticed += 1;
                scene.put_back(&flip);
            }
            Outcome::Harmless => harmless += 1,
        }
    }
    println!("{flips} flipped bits: {noticed} noticed, {harmless} harmless");
    scene.start_sound();
    scene.assert_equal();
}
