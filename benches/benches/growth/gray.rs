//! Gray failure: one node of three gets slow, or stands still again and again, while clients work as fast as they can. What
//! they get done before, at the worst, when leaders have moved, and when the node is well again.

use std::path::Path;
use std::time::Duration;

use flotilla_benches::args::Args;
use flotilla_benches::stats::Table;

use crate::load::{CLIENTS, Load, Throughput};
use crate::powercut::{Control, PowerCut};
use flotilla_benches::cluster::{Cluster, Result, shown};

const RANGES: &str = "12";
/// The node that is hit: not the one that the cluster began with, which leads the system range.
const HIT: usize = 1;
/// Seconds: before the fault, of the fault, and behind it.
const BEFORE: f64 = 6.0;
const DURING: f64 = 20.0;
const BEHIND: f64 = 20.0;
/// A pause, and the time between two.
const STILL: f64 = 1.5;

const COLUMNS: &[&str; 7] = &[
    "operations/s before",
    "worst second : before",
    "back at 80% after, s",
    "from 10 s on : before",
    "when well again : before",
    "leaders there before",
    "leaders there meanwhile",
];

#[derive(Clone, Copy)]
enum Fault {
    SyncMs(u64),
    StandsStill,
}

pub async fn run(binary: &Path, args: &Args) -> Result<()> {
    let mut table = Table::new(format!("One of three nodes is slow; {RANGES} ranges"), COLUMNS);
    for (name, fault) in [
        ("each sync takes 10 ms longer", Fault::SyncMs(10)),
        ("each sync takes 50 ms longer", Fault::SyncMs(50)),
        ("each sync takes 100 ms longer", Fault::SyncMs(100)),
        ("stands still for 1.5 s of every 3", Fault::StandsStill),
    ] {
        for _ in 0..args.reps {
            table.add(name, &shown(name, COLUMNS, measure(binary, args, fault)).await?);
        }
    }
    table.print();
    Ok(())
}

async fn measure(binary: &Path, args: &Args, fault: Fault) -> Result<[f64; 7]> {
    let directory = tempfile::tempdir_in(&args.dir)?;
    let file = directory.path().join("syncs");
    let control = Control::open(&file)?;
    let mut environment = vec![Vec::new(); HIT + 1];
    environment[HIT] = PowerCut::faults_only(None).control(&file).vars();
    let flags = ["--initial-ranges", RANGES];
    let cluster = Cluster::start_in(binary, &args.dir, 3, &flags, environment).await?;
    let client = cluster.client().await?;
    let led =
        async || -> Result<f64> { Ok(f64::from(client.node_status_at(&cluster.nodes[HIT].client).await?.ranges_led)) };
    // Leaders are spread by placement, and then stay.
    flotilla_benches::cluster::wait("leaders on the node", async || led().await.is_ok_and(|led| led >= 3.0)).await?;
    let load = Throughput::start(std::slice::from_ref(&client), Load::Mixed, CLIENTS);
    pause(2.0 + BEFORE).await;
    let (led_before, hit) = (led().await?, load.now());
    let before = load.rate(hit - BEFORE, hit);
    match fault {
        Fault::SyncMs(ms) => {
            control.set_delay_us(ms * 1_000);
            pause(DURING).await;
        }
        Fault::StandsStill => {
            while load.now() < hit + DURING {
                cluster.stand_still(HIT, true)?;
                pause(STILL).await;
                cluster.stand_still(HIT, false)?;
                pause(STILL).await;
            }
        }
    }
    let (led_meanwhile, healed) = (led().await?, load.now());
    control.set_delay_us(0);
    pause(BEHIND).await;
    let second = |at: usize| load.rate(hit + at as f64 / 2.0, hit + at as f64 / 2.0 + 1.0) / before;
    let seconds = ((healed - hit) * 2.0) as usize - 2;
    let worst = (0..seconds).map(second).fold(f64::MAX, f64::min);
    // From then on every second has four fifths.
    let back = (0..seconds).rev().take_while(|at| second(*at) >= 0.8).last();
    let values = [
        before,
        worst,
        back.map_or(f64::NAN, |at| at as f64 / 2.0),
        load.rate(hit + 10.0, healed) / before,
        load.rate(healed + BEHIND - 10.0, healed + BEHIND) / before,
        led_before,
        led_meanwhile,
    ];
    load.stop().await;
    Ok(values)
}

async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
