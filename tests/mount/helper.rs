//! `mount -t fuse.scelle` and lines of fstab(5), through mount(8) and umount(8) themselves: in a mount namespace of its own,
//! in which `/sbin` has our helpers. `umount -c`, as systemd calls it, asks our helper, which waits for the daemon; without
//! `-c` umount(8) of util-linux 2.38 looks only for a helper of all FUSE filesystems.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::lab::{Lab, SCELLE, ok, run, stderr};

/// Runs a shell script there. `$devices` are joined with colons, `$mnt`, `$options` and `$dir` are the laboratory's. It
/// ends with the first command that fails, and unmounts whatever is left.
fn script(lab: &Lab, text: &str) -> Output {
    let devices: Vec<&str> = lab.disks.iter().map(|disk| disk.device.to_str().unwrap()).collect();
    let file = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let options = format!(
        "registry={},trust={},passphrase-file={}",
        file("registry.toml"),
        file("trust.toml"),
        file("passphrase")
    );
    let text = format!("set -eux; trap 'mountpoint -q $mnt && umount -l $mnt' EXIT\n{text}");
    let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-helpers");
    run(Command::new(helpers)
        .args(["bash", "-c", &text])
        .env("SCELLE", SCELLE)
        .env("devices", devices.join(":"))
        .env("mnt", &lab.mountpoint)
        .env("options", options)
        .env("dir", lab.dir.path()))
}

fn lines(out: &Output) -> Vec<String> {
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn mount_8_mounts_the_type_and_the_table_shows_it() {
    let lab = Lab::new(2, 64);
    ok(&lab.create());
    let out = script(
        &lab,
        "said=$(mount -t fuse.scelle $devices $mnt -o $options 2>&1)
         test -z \"$said\"
         findmnt -no FSTYPE,OPTIONS $mnt
         findmnt -no SOURCE $mnt
         echo kept >$mnt/deed
         umount -c $mnt
         $SCELLE check --registry $dir/registry.toml --trust $dir/trust.toml --passphrase-file $dir/passphrase \
             ${devices/:/ } >&2
         mount -t scelle not-sovereign:laboratory-registry:$devices $mnt -o ro,_netdev,nofail,x-systemd.automount,$options
         findmnt -no FSTYPE,OPTIONS $mnt
         cat $mnt/deed
         (echo no >$mnt/deed) 2>&1 | grep -o 'Read-only file system'
         umount $mnt
         ! mountpoint -q $mnt",
    );
    ok(&out);
    let lines = lines(&out);
    assert!(lines[0].starts_with("fuse.scelle rw,nosuid,nodev,noatime,"), "{lines:?}");
    let devices: Vec<&str> = lab.disks.iter().map(|disk| disk.device.to_str().unwrap()).collect();
    assert_eq!(lines[1], format!("not-sovereign:laboratory-registry:{}", devices.join(":")));
    assert!(lines[2].starts_with("fuse.scelle ro,nosuid,nodev,"), "{lines:?}");
    assert_eq!(lines[3..], ["kept", "Read-only file system"]);
}

#[test]
fn a_line_of_fstab_is_mounted_once() {
    let lab = Lab::new(1, 64);
    ok(&lab.create());
    let out = script(
        &lab,
        "line() { echo \"$1 $mnt fuse.scelle nofail,_netdev,x-note=deeds,$2,$options 0 0\" >$dir/fstab; }
         line not-sovereign:laboratory-registry:$devices allow-suid,allow-dev
         for time in first second; do mount --fstab $dir/fstab -a; done
         grep -c \" $mnt \" /proc/self/mountinfo
         findmnt -no OPTIONS $mnt
         umount $mnt
         line $devices noexec
         mount --fstab $dir/fstab $mnt
         findmnt -no OPTIONS $mnt
         umount $mnt",
    );
    ok(&out);
    let lines = lines(&out);
    assert_eq!(lines[0], "1", "mount -a mounts what is mounted already: {}", stderr(&out));
    assert!(lines[1].starts_with("rw,noatime,"), "{lines:?}");
    assert!(lines[2].starts_with("rw,nosuid,nodev,noexec,noatime,"), "{lines:?}");
}

#[test]
fn a_line_that_names_the_volume_is_mounted_once_whatever_its_kind() {
    let lab = Lab::new(1, 64);
    ok(&lab.create());
    let out = script(
        &lab,
        "echo \"$devices $mnt fuse.scelle nofail,_netdev,$options 0 0\" >$dir/fstab
         for time in first second; do mount --fstab $dir/fstab -a; done
         grep -c \" $mnt \" /proc/self/mountinfo
         ! mount -t fuse.scelle $devices $mnt -o ro,$options
         ! mount -t fuse.scelle /dev/none $mnt -o $options
         kill -9 $($SCELLE status --json $mnt | jq .volumes[0].pid)
         mount --fstab $dir/fstab -a
         echo again >$mnt/deed
         umount $mnt",
    );
    ok(&out);
    assert_eq!(lines(&out), ["1"]);
    let taken = stderr(&out).matches("[mountpoint-taken]").count();
    assert_eq!(taken, 2, "otherwise, or another volume: {}", stderr(&out));
}

#[test]
fn a_remount_changes_the_flags_and_ro_is_durable() {
    let lab = Lab::new(1, 64);
    ok(&lab.create());
    let out = script(
        &lab,
        "mount -t fuse.scelle $devices $mnt -o allow-suid,$options
         echo kept >$mnt/deed
         mount -o remount,ro $mnt
         findmnt -no OPTIONS $mnt
         (echo no >$mnt/deed) 2>&1 | grep -o 'Read-only file system'
         kill -9 $($SCELLE status --json $mnt | jq .volumes[0].pid)
         umount -l $mnt
         mount -t fuse.scelle $devices $mnt -o allow-suid,ro,$options
         cat $mnt/deed
         umount $mnt
         mount -t fuse.scelle $devices $mnt -o allow-suid,$options
         mount -o remount,rw,noexec $mnt
         findmnt -no OPTIONS $mnt
         exec 9>>$mnt/deed
         ! mount -o remount,ro $mnt
         echo more >&9
         exec 9>&-
         umount $mnt
         mount -t fuse.scelle $devices $mnt -o ro,$options
         ! mount -o remount,rw $mnt
         cat $mnt/deed
         umount $mnt",
    );
    ok(&out);
    let lines = lines(&out);
    assert!(lines[0].starts_with("ro,nodev,noatime,"), "{lines:?}");
    assert_eq!(lines[1], "Read-only file system");
    assert_eq!(lines[2], "kept", "what was written before remount,ro is durable");
    assert!(lines[3].starts_with("rw,nodev,noexec,noatime,"), "{lines:?}");
    assert_eq!(lines[4..], ["kept", "more"]);
    for reason in ["remount-busy", "remount-read-only"] {
        assert!(stderr(&out).contains(&format!("[{reason}]")), "{reason}: {}", stderr(&out));
    }
}

#[test]
fn a_lazy_unmount_leaves_the_daemon_to_its_last_user() {
    let lab = Lab::new(1, 64);
    ok(&lab.create());
    let out = script(
        &lab,
        "mount -t fuse.scelle $devices $mnt -o $options
         exec 9>$mnt/deed
         ! umount -c $mnt
         umount -l $mnt
         ! mountpoint -q $mnt
         echo late >&9
         exec 9>&-
         mount -t fuse.scelle $devices $mnt -o $options
         cat $mnt/deed
         umount $mnt",
    );
    ok(&out);
    assert_eq!(lines(&out), ["late"]);
    assert!(stderr(&out).contains("[umount-busy]"), "{}", stderr(&out));
    assert_eq!(fs::read_dir(&lab.mountpoint).unwrap().count(), 0);
}
