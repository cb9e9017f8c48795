//! Writes examples that are no rows of a table: images to a folder, one sub-folder a class, and arrays to `.npz`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use graph::Tensor;
use image::ImageFormat;
use learn::Input;
use learn::data::{Dataset, Target, concat, npz};

use super::Verdict;
use crate::{Error, Result};

/// Writes those that stay.
pub(super) fn examples(data: &dyn Dataset, verdicts: &[Verdict], out: &Path) -> Result<()> {
    let rows: Vec<usize> = (0..verdicts.len()).filter(|&row| verdicts[row] == Verdict::Kept).collect();
    match data.get(rows[0])?.input {
        Input::Image(_) => images(data, &rows, out),
        _ => arrays(data, &rows, out),
    }
}

/// A folder that is there as a whole or not at all. Images keep their files where they have any; others become PNG.
fn images(data: &dyn Dataset, rows: &[usize], out: &Path) -> Result<()> {
    let failed = |path: &Path, e: std::io::Error| Error::input(format!("{}: {e}", path.display()));
    if fs::symlink_metadata(out).is_ok() {
        return Err(Error::input(format!("{} is there already; name a new folder", out.display())));
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place =
        tempfile::Builder::new().prefix(".lessen-").tempdir_in(parent).map_err(|e| failed(parent, e))?;
    let classes = data.classes();
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    for &row in rows {
        let example = data.get(row)?;
        let folder = match example.target {
            Target::Class(class) => {
                if !names.contains_key(&class) {
                    let name = classes.and_then(|names| names.get(class)).cloned();
                    let mut name = plain(&name.unwrap_or_else(|| class.to_string()));
                    // Two classes never become one.
                    while names.values().any(|other| *other == name) {
                        name += "_";
                    }
                    let folder = place.path().join(&name);
                    fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
                    names.insert(class, name);
                }
                place.path().join(&names[&class])
            }
            _ => place.path().to_owned(),
        };
        // The number first: files of two folders may have the same name.
        let write = |name: String, bytes: &[u8]| {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(|e| failed(&path, e))
        };
        match data.file(row) {
            Some(file) => {
                let bytes = fs::read(&file).map_err(|e| failed(&file, e))?;
                let name = file.file_name().and_then(|n| n.to_str()).unwrap_or("image");
                write(format!("{row:07}-{name}"), &bytes)?;
            }
            None => {
                let Input::Image(image) = example.input else {
                    return Err(Error::input(format!("{} is no image, as the first is", example.id)));
                };
                let mut bytes = Cursor::new(Vec::new());
                image
                    .write_to(&mut bytes, ImageFormat::Png)
                    .map_err(|e| Error::input(format!("{}: {e}", example.id)))?;
                write(format!("{row:07}.png"), bytes.get_ref())?;
            }
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).map_err(|e| failed(out, e))?;
    }
    let kept = place.keep();
    fs::rename(&kept, out).map_err(|e| {
        _ = fs::remove_dir_all(&kept);
        failed(out, e)
    })
}

/// A name that is one folder, whatever a class is called.
fn plain(name: &str) -> String {
    let odd = |c: char| c == '/' || c == '\\' || c == ':' || c.is_control();
    let name: String = name.chars().map(|c| if odd(c) { '_' } else { c }).collect();
    match name.trim_start_matches('.') {
        "" => "_".into(),
        _ if name.starts_with('.') => format!("_{name}"),
        _ => name,
    }
}

fn arrays(data: &dyn Dataset, rows: &[usize], out: &Path) -> Result<()> {
    if out.extension().is_none_or(|e| e != "npz") {
        return Err(Error::input(format!(
            "{}: arrays are written to a file whose name ends with .npz",
            out.display()
        )));
    }
    let mut all: Vec<(String, Vec<Tensor>)> = Vec::new();
    for &row in rows {
        let example = data.get(row)?;
        let Input::Arrays(arrays) = example.input else {
            return Err(Error::input(format!("{} is no array, as the first is", example.id)));
        };
        for (name, tensor) in arrays {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, parts)) => parts.push(tensor),
                None => all.push((name, vec![tensor])),
            }
        }
    }
    let mut arrays = Vec::new();
    for (name, parts) in all {
        arrays.push((name, concat(&parts.iter().collect::<Vec<_>>())?));
    }
    let targets: Vec<Target> = rows.iter().map(|&row| data.target(row)).collect();
    let classes =
        targets.iter().map(|t| if let Target::Class(class) = t { Some(*class as i64) } else { None });
    if let Some(classes) = classes.collect::<Option<Vec<i64>>>() {
        arrays.push(("label".into(), Tensor::new(&[classes.len()], &classes)?));
    }
    let scores = targets.iter().map(|t| if let Target::Score(score) = t { Some(*score) } else { None });
    if let Some(scores) = scores.collect::<Option<Vec<f64>>>() {
        arrays.push(("score".into(), Tensor::new(&[scores.len()], &scores)?));
    }
    let sets = targets.iter().map(|t| if let Target::Labels(held) = t { Some(held.as_ref()) } else { None });
    if let Some(sets) = sets.collect::<Option<Vec<&[usize]>>>() {
        let count = data.classes().map_or(0, <[String]>::len);
        let count = sets.iter().filter_map(|held| held.last()).fold(count, |count, last| count.max(last + 1));
        let held = sets.iter().flat_map(|held| (0..count).map(|label| i64::from(held.contains(&label))));
        let held: Vec<i64> = held.collect();
        arrays.push(("labels".into(), Tensor::new(&[sets.len(), count], &held)?));
    }
    Ok(npz::write(out, &arrays)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_folders_whatever_they_are_called() {
        for (name, want) in
            [("cat", "cat"), ("a/b", "a_b"), ("..", "_"), ("", "_"), (".git", "_.git"), ("../x", "_.._x")]
        {
            assert_eq!(plain(name), want);
        }
    }
}
