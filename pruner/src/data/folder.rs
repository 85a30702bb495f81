//! Image files, labelled by their names or by their folders.

use super::{Dataset, Image, decode, list, read};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// JPEG and PNG files. Without subfolders, the label is the last number in a file's name
/// (`cat_00_3.png` is class 3). With subfolders, each is a class: its number where every name is a
/// number, otherwise its place in the sorted list.
#[derive(Clone, Debug)]
pub struct Folder {
    source: String,
    files: Vec<(PathBuf, usize)>,
}

impl Folder {
    /// The images of a folder, sorted by path.
    pub fn open(path: &Path) -> Result<Folder> {
        let entries = list(path)?;
        let classes: Vec<&PathBuf> = entries.iter().filter(|p| p.is_dir()).collect();
        let source = path.display().to_string();
        if classes.is_empty() {
            return Folder::named(source, entries);
        }
        let numbers: Option<Vec<usize>> = classes.iter().map(|p| stem(p).parse().ok()).collect();
        let mut files = Vec::new();
        for (place, class) in classes.iter().enumerate() {
            let label = numbers.as_ref().map_or(place, |n| n[place]);
            let images = list(class)?.into_iter().filter(|p| is_image(p));
            files.extend(images.map(|p| (p, label)));
        }
        Folder::new(source, files)
    }

    /// The images that a shell glob matches, labelled by their names, sorted by path.
    pub fn glob(pattern: &str) -> Result<Folder> {
        let paths = glob::glob(pattern).map_err(|e| Error::Pattern {
            pattern: pattern.to_owned(),
            what: e.to_string(),
        })?;
        let mut files: Vec<PathBuf> = paths.filter_map(|p| p.ok()).collect();
        files.sort();
        Folder::named(pattern.to_owned(), files)
    }

    fn named(source: String, paths: Vec<PathBuf>) -> Result<Folder> {
        let files: Result<Vec<(PathBuf, usize)>> = paths
            .into_iter()
            .filter(|p| is_image(p))
            .map(|path| match last_number(&stem(&path)) {
                Some(label) => Ok((path, label)),
                None => Err(Error::Data {
                    path,
                    what: "the name holds no number to take as the label".into(),
                }),
            })
            .collect();
        Folder::new(source, files?)
    }

    fn new(source: String, files: Vec<(PathBuf, usize)>) -> Result<Folder> {
        if files.is_empty() {
            return Err(Error::Data {
                path: source.into(),
                what: "no .jpg, .jpeg or .png file".into(),
            });
        }
        Ok(Folder { source, files })
    }
}

impl Dataset for Folder {
    fn describe(&self) -> String {
        format!("{} image files of {}", self.files.len(), self.source)
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> usize {
        self.files[index].1
    }

    fn image(&self, index: usize) -> Result<Image> {
        let path = &self.files[index].0;
        decode(&read(path)?).map_err(|what| Error::Data {
            path: path.clone(),
            what,
        })
    }

    fn origin(&self, index: usize) -> String {
        self.files[index].0.display().to_string()
    }
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    ["jpg", "jpeg", "png"].contains(&extension.to_lowercase().as_str())
}

fn last_number(name: &str) -> Option<usize> {
    name.split(|c: char| !c.is_ascii_digit())
        .rfind(|s| !s.is_empty())?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_the_last_number_of_the_name() {
        assert_eq!(last_number("imagenet_00_243"), Some(243));
        assert_eq!(last_number("cat7b"), Some(7));
        assert_eq!(last_number("cat"), None);
    }
}
