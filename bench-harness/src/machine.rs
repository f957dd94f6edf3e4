//! What the figures were measured on: kernel, CPU, memory, clock, disk. Read from the kernel's own files; what can not be
//! read is left out or called `unknown`, never an error: a result without the model of the disk is still one.

use crate::result::{Disk, Machine};
use std::fs;
use std::path::{Path, PathBuf};

/// This machine. `folder` tells which disk is meant: the broker's data, where it is local.
pub(crate) fn describe(folder: &Path) -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let usable = std::thread::available_parallelism().map_or(0, |n| n.get() as u32);
    Machine {
        kernel: format!("Linux {}", line_of("/proc/sys/kernel/osrelease").unwrap_or_else(unknown)),
        os: os_name(&fs::read_to_string("/etc/os-release").unwrap_or_default()).unwrap_or_else(unknown),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_model: cpu_model(&cpuinfo).unwrap_or_else(unknown),
        cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count() as u32,
        cores_usable: usable,
        memory_bytes: kib_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
            .unwrap_or(0),
        clock_source: line_of("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            .unwrap_or_else(unknown),
        disk: disk(folder),
        hypervisor: hypervisor(&cpuinfo),
        clock_error_ns: None,
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// The first line of a file, if there is anything on it.
fn line_of(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// A line such as `MemTotal:  1234 kB`, in bytes.
pub(crate) fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn os_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// `model name` on x86-64. arm64 has numbers only: the implementer and the part.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let value = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    value("model name")
        .or_else(|| Some(format!("implementer {} part {}", value("CPU implementer")?, value("CPU part")?)))
}

fn hypervisor(cpuinfo: &str) -> Option<String> {
    let is_guest = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    let vendor = line_of("/sys/class/dmi/id/sys_vendor");
    let product = line_of("/sys/class/dmi/id/product_name");
    let named = match (vendor, product) {
        (Some(vendor), Some(product)) => format!("{vendor} {product}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => unknown(),
    };
    is_guest.then_some(named)
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// `major:minor`.
    device: String,
    place: PathBuf,
    file_system: String,
    source: String,
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let mut right = right.split(' ');
            Some(Mount {
                device: (*left.get(2)?).to_owned(),
                place: PathBuf::from(unescaped(left.get(4)?)),
                file_system: right.next()?.to_owned(),
                source: unescaped(right.next()?),
            })
        })
        .collect()
}

/// The kernel writes a space in a path as `\040`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn disk(folder: &Path) -> Option<Disk> {
    let folder = folder.canonicalize().ok()?;
    let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo").ok()?);
    // Later mounts lie on top of earlier ones: the last of the longest.
    let mount = mounts
        .iter()
        .filter(|mount| folder.starts_with(&mount.place))
        .max_by_key(|mount| mount.place.as_os_str().len())?;
    let block = fs::canonicalize(format!("/sys/dev/block/{}", mount.device)).ok();
    // A partition's queue is that of the disk above it.
    let whole = block.map(|path| match path.join("partition").exists() {
        true => path.parent().map(Path::to_owned).unwrap_or(path),
        false => path,
    });
    Some(Disk {
        device: mount.source.clone(),
        model: whole.as_ref().and_then(|path| line_of(path.join("device/model"))),
        file_system: mount.file_system.clone(),
        write_cache: whole.as_ref().and_then(|path| line_of(path.join("queue/write_cache"))),
    })
}

/// Why what is kept below a folder says nothing of a disk, if it does not.
pub(crate) fn no_disk_below(folder: &Path) -> Option<String> {
    let disk = disk(folder)?;
    let why = match disk.file_system.as_str() {
        "tmpfs" | "ramfs" => "is in memory: nothing is ever written to a disk there",
        "overlay" => "is an overlay: writes go through its upper file system, which may be any",
        _ => return None,
    };
    Some(format!("the file system of {} ({}) {why}", folder.display(), disk.file_system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_memory_and_a_kernel() {
        let machine = describe(Path::new("/"));
        assert!(
            machine.cores >= 1 && machine.cores_usable >= 1 && machine.memory_bytes > 1 << 20,
            "{machine:?}"
        );
        assert!(machine.kernel.starts_with("Linux ") && machine.kernel != "Linux unknown");
    }

    #[test]
    fn models_are_found_on_both_architectures() {
        let x86 = "processor\t: 0\nmodel name\t: A Fast CPU @ 3.0GHz\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(cpu_model(x86).as_deref(), Some("A Fast CPU @ 3.0GHz"));
        assert!(hypervisor(x86).is_some());
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(cpu_model(arm).as_deref(), Some("implementer 0x41 part 0xd0c"));
        assert_eq!((cpu_model(""), hypervisor("")), (None, None));
    }

    #[test]
    fn mounts_with_spaces_and_optional_fields_are_read() {
        let text = "36 35 98:0 /mnt1 /mnt/two\\040words rw,noatime master:1 shared:2 - ext4 /dev/root rw\nnonsense\n";
        let expected = Mount {
            device: "98:0".to_owned(),
            place: PathBuf::from("/mnt/two words"),
            file_system: "ext4".to_owned(),
            source: "/dev/root".to_owned(),
        };
        assert_eq!(mounts(text), [expected]);
        assert_eq!(unescaped("a\\b\\0"), "a\\b\\0");
    }

    #[test]
    fn memory_is_told_from_a_disk() {
        // Where there is no such mount, there is nothing to tell.
        let is_memory = disk(Path::new("/dev/shm")).is_some_and(|disk| disk.file_system == "tmpfs");
        assert_eq!(no_disk_below(Path::new("/dev/shm")).is_some(), is_memory);
        assert_eq!(no_disk_below(Path::new("/proc/self")), None);
    }

    #[test]
    fn amounts_in_kib() {
        assert_eq!(kib_of("VmHWM:\t  12 kB\nVmRSS:\t    7 kB\n", "VmRSS:"), Some(7 << 10));
        assert_eq!(kib_of("VmRSS: much\n", "VmRSS:"), None);
    }
}
