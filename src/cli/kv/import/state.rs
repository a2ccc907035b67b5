//! How far an import came, in a file beside its source: what `--resume` goes on from.
//!
//! The state names a border between records before which every row is acknowledged or was told to be
//! malformed. It holds the checksum of all bytes before, the settings and the cluster: an import goes
//! on only where all of them are the same. It is replaced as a whole, so that a kill at any moment
//! leaves an old one or a new one; rows behind it are written again, which changes nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::pieces::Place;
use crate::cli::failure::{Failure, Result};

/// The form of the file.
const FORMAT: u32 = 1;

/// How far an import came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// Which cluster it stores to.
    pub cluster_id: String,
    /// Everything that decides what a row becomes.
    pub settings: String,
    /// Bytes done.
    pub offset: u64,
    /// The line behind them.
    pub line: u64,
    /// crc32 of them.
    pub checksum: u32,
    /// Rows stored.
    pub stored: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Rows left out as malformed.
    pub skipped: u64,
}

impl State {
    /// An import that begins.
    pub fn new(cluster_id: String, settings: String) -> Self {
        let Place { offset, line, checksum } = Place { line: 1, ..Place::default() };
        Self { format: FORMAT, cluster_id, settings, offset, line, checksum, stored: 0, bytes: 0, skipped: 0 }
    }

    /// The border it stands at.
    pub fn place(&self) -> Place {
        Place { offset: self.offset, line: self.line, checksum: self.checksum }
    }

    /// Moves it on.
    pub fn set_place(&mut self, place: Place) {
        Place { offset: self.offset, line: self.line, checksum: self.checksum } = place;
    }
}

/// The file with the state.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// Beside the source.
    pub fn beside(source: &Path) -> Self {
        let mut name = OsString::from(source);
        name.push(".import-state");
        Self { path: name.into() }
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What it says, if there is one; it must fit to an import that begins.
    pub fn load(&self, fresh: &State) -> Result<Option<State>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file("read", &self.path, &error)),
        };
        let anew = || format!("remove {} to begin anew", self.path.display());
        let state: State = serde_json::from_slice(&text)
            .map_err(|error| Failure::failed(format!("{} is damaged: {error}", self.path.display())).hint(anew()))?;
        if state.format != FORMAT {
            let what = format!("{} has format {}, this version knows {FORMAT}", self.path.display(), state.format);
            return Err(Failure::failed(what).hint(anew()));
        }
        for (what, before, now) in
            [("cluster", &state.cluster_id, &fresh.cluster_id), ("settings", &state.settings, &fresh.settings)]
        {
            if before != now {
                return Err(Failure::usage(format!("the import to go on with had other {what}: {before}, not {now}"))
                    .hint(format!("use the same as before, or {}", anew())));
            }
        }
        Ok(Some(state))
    }

    /// The source is not what it was.
    pub fn changed(&self, source: &Path, state: &State) -> Failure {
        Failure::failed(format!(
            "{} has changed within its first {} bytes, which are imported already",
            source.display(),
            state.offset
        ))
        .hint(format!("remove {} to import it anew, from its beginning", self.path.display()))
    }

    /// Replaces it.
    pub fn save(&self, state: &State) -> Result {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(serde_json::to_string(state)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|error| {
            Failure::file("write", &self.path, &error).hint("without --resume no state is kept beside the source")
        })
    }

    /// The import is done.
    pub fn remove(&self) -> Result {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::file("remove", &self.path, &error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_only_where_it_fits() {
        let folder = tempfile::tempdir().expect("tempdir");
        let source = folder.path().join("rows.csv");
        let file = StateFile::beside(&source);
        let fresh = |cluster: &str, settings: &str| State::new(cluster.into(), settings.into());
        assert_eq!(file.load(&fresh("c", "s")), Ok(None));
        let mut state = fresh("c", "s");
        state.set_place(Place { offset: 100, line: 7, checksum: 9 });
        (state.stored, state.bytes, state.skipped) = (5, 50, 1);
        file.save(&state).expect("written");
        assert_eq!(file.load(&fresh("c", "s")), Ok(Some(state.clone())));
        assert_eq!(file.load(&fresh("d", "s")).expect_err("cluster").code(), 2);
        assert_eq!(file.load(&fresh("c", "t")).expect_err("settings").code(), 2);
        assert!(file.changed(&source, &state).to_string().contains("100 bytes"));
        file.remove().expect("removed");
        file.remove().expect("gone already");
        assert_eq!(fs::read_dir(folder.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn a_state_cut_at_any_byte_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = StateFile::beside(&folder.path().join("x"));
        let state = State::new("c".into(), "s".into());
        file.save(&state).expect("written");
        let whole = fs::read(&file.path).expect("there");
        for length in 0..whole.len() {
            fs::write(&file.path, &whole[..length]).expect("write");
            let failure = file.load(&state).expect_err("damaged");
            assert!(failure.to_string().contains("begin anew"), "{failure}");
        }
    }
}
