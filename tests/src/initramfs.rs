//! An initramfs as the kernel takes it: a "newc" cpio archive, made in memory.
//! Source: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// An archive that is being filled. Parents must be added before what is in them.
#[derive(Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    inodes: u32,
}

impl Initramfs {
    /// Adds a folder.
    pub fn dir(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[]);
    }

    /// Adds a file of the build machine, with its permissions.
    pub fn file(&mut self, path: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        let mode = fs::metadata(from)?.permissions().mode();
        self.entry(path, 0o100_000 | (mode & 0o777), &content);
        Ok(())
    }

    /// Adds a file with this content.
    pub fn content(&mut self, path: &str, content: &str) {
        self.entry(path, 0o100_644, content.as_bytes());
    }

    /// Adds a program with this content.
    pub fn script(&mut self, path: &str, content: &str) {
        self.entry(path, 0o100_755, content.as_bytes());
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, 0o120_777, target.as_bytes());
    }

    /// The archive. Another one may follow it in the same file.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.pad(512);
        self.archive
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let (inode, size, name_size) = (self.inodes, content.len(), path.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1,
        );
        self.archive.extend_from_slice(header.as_bytes());
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad(4);
        self.archive.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.archive.resize(self.archive.len().next_multiple_of(to), 0);
    }
}
