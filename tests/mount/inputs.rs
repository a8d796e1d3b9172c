//! What a user can get wrong around a mount, and what a host may lack: refused or said, in words that lead on.

use crate::lab::{Lab, ok, stderr};

fn volume() -> Lab {
    let lab = Lab::new(2, 32);
    ok(&lab.create());
    lab
}

#[test]
fn a_mount_that_succeeds_says_nothing_on_the_terminal() {
    let lab = volume();
    for options in ["ro", "", "ro,noexec"] {
        let out = lab.mount_devices(&lab.devices(), options);
        ok(&out);
        assert_eq!((stderr(&out), out.stdout.len()), (String::new(), 0), "{options}");
        ok(&lab.umount());
    }
}
