//! Folders for what processes write. The number of the process is in the name, so that the next one can remove what was
//! left by one that was killed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;

use crate::controlplane::checkout;

/// How many processes' logs are kept after their end.
const KEPT: usize = 3;

/// A new folder in `parent`, with a name that begins with `prefix`. Those of processes that are gone are removed.
pub fn scratch(parent: &Path, prefix: &str) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    fs::create_dir_all(parent)?;
    for left in left_in(parent, prefix)? {
        let _ = fs::remove_dir_all(left);
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    afresh(parent.join(format!("{prefix}{}-{number}", std::process::id())))
}

/// Where this process and the components that it starts write their logs, in `$STANDFAST_LOGS`. Those of the last few
/// processes are kept.
pub fn logs() -> Result<PathBuf> {
    static MADE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(folder) = &*made {
        return Ok(folder.clone());
    }
    let all = std::env::var_os("STANDFAST_LOGS").map_or_else(|| checkout().join(".work/logs"), PathBuf::from);
    let parent = all.join("control-plane");
    fs::create_dir_all(&parent)?;
    let mut left = left_in(&parent, "")?;
    left.sort_by_cached_key(|folder| fs::metadata(folder).and_then(|m| m.modified()).ok());
    for folder in left.iter().rev().skip(KEPT) {
        let _ = fs::remove_dir_all(folder);
    }
    Ok(made.insert(afresh(parent.join(std::process::id().to_string()))?).clone())
}

/// What processes have left that are gone.
fn left_in(parent: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut left = vec![];
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let process = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|p| !Path::new("/proc").join(p.to_string()).exists()) {
            left.push(entry.path());
        }
    }
    Ok(left)
}

/// Makes a folder, empty even if an earlier process had the same number.
fn afresh(folder: PathBuf) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder)?;
    Ok(folder)
}
