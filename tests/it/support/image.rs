//! A file system of its own for a test: ext4 in a file, by a loop device. It can be small, and its device can be copied at any moment:
//! what the copy holds is what a disk holds when the machine loses its power.
//!
//! That takes root and loop devices. Where they are not to be had, [`Image::new`] says so and gives none, and the test passes over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE: &str = "disk.img";

/// See the module. Unmounted and given back when dropped.
pub struct Image {
    /// It is here, in a file; gone with it.
    directory: tempfile::TempDir,
    device: String,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Image {
    /// An empty file system of so many MiB; none where a test may not mount.
    pub fn new(mib: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let (file, root) = (directory.path().join(FILE), directory.path().join("mounted"));
        std::fs::create_dir_all(&root).expect("the test's own directory");
        let sparse = File::create(&file).and_then(|file| file.set_len(mib << 20));
        sparse.expect("a file in the test's own directory");
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", path(&file)]).and_then(|_| attach(&file));
        let device = match made {
            Ok(device) => device,
            Err(why) => return pass_over(&why),
        };
        let image = Self { directory, device, root };
        match image.mount() {
            Ok(()) => Some(image),
            Err(why) => pass_over(&why),
        }
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", &self.device, path(&self.root)]).map(drop)
    }

    /// What was written to the device, and is being written: while it stays the same, a copy of the file is one moment.
    fn writes(&self) -> (u64, u64) {
        let name = self.device.trim_start_matches("/dev/");
        let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("a loop device has figures");
        let figure = |at: usize| text.split_whitespace().nth(at).and_then(|word| word.parse().ok()).expect("a number");
        (figure(4), figure(8))
    }

    /// Copies the device at one moment. Whoever writes to it should stand still, or it may take many attempts.
    pub fn copy(&self) {
        super::eventually("the device to rest while it is copied", || {
            let before = self.writes();
            let copied = run("cp", &["--sparse=always", "--reflink=never", path(&self.file()), path(&self.copied())]);
            copied.expect("there is room in the test's own directory");
            before.1 == 0 && self.writes() == before
        });
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }

    fn copied(&self) -> PathBuf {
        self.directory.path().join("copied.img")
    }

    /// Goes on with what [`Self::copy`] took; nobody has files open there any more.
    pub fn restore(&mut self) {
        self.detach();
        std::fs::rename(self.copied(), self.file()).expect("it was copied");
        self.attach();
    }

    /// Makes the file system larger; nobody has files open there.
    pub fn grow(&mut self, mib: u64) {
        self.detach();
        let file = self.file();
        File::options().write(true).open(&file).and_then(|file| file.set_len(mib << 20)).expect("a sparse file");
        run("e2fsck", &["-f", "-y", path(&file)]).expect("it is sound");
        run("resize2fs", &[path(&file)]).expect("ext4 grows");
        self.attach();
    }

    fn detach(&mut self) {
        run("umount", &[path(&self.root)]).expect("nobody uses it");
        run("losetup", &["--detach", &self.device]).expect("it was attached");
    }

    fn attach(&mut self) {
        self.device = attach(&self.file()).expect("it was possible before");
        self.mount().expect("its journal makes it whole");
    }

    /// Bytes of its files, without the WALs' room; nobody changes them meanwhile.
    pub fn bytes(&self) -> u64 {
        bytes_below(&self.root)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // In a test that fails somebody may still use it: it goes when they do.
        for (program, args) in
            [("umount", ["--lazy", path(&self.root)]), ("losetup", ["--detach", self.device.as_str()])]
        {
            if let Err(why) = run(program, &args) {
                eprintln!("{why}");
            }
        }
    }
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_below(&entry.path()),
        Ok(_) => super::used_bytes(&entry.path()),
        // A file that went meanwhile.
        Err(_) => 0,
    };
    entries.map(size).sum()
}

fn pass_over(why: &str) -> Option<Image> {
    println!("passed over: this needs root, mkfs.ext4 and loop devices: {why}");
    None
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn attach(file: &Path) -> Result<String, String> {
    run("losetup", &["--find", "--show", path(file)])
}

/// Runs a tool of the system; what it printed.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|why| format!("{program}: {why}"))?;
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{program} {args:?}: {}: {}", output.status, error.trim()));
    }
    Ok(told.trim().to_owned())
}
