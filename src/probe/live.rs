//! What a device itself answers when it is asked who it is, compared with what sysfs remembers of it.
//!
//! sysfs shows an identity as it was read when the device appeared. Since then a disk array can have put another disk
//! behind the same name, a bridge can have been re-plugged, a file of sysfs can have been covered by a mount. So every
//! leaf that a policy can list and that can be asked is asked anew at every check, through the open device.
//!
//! | kind | asked | compared |
//! |---|---|---|
//! | NVMe | Identify Controller (CNS 1) | serial number, model; whether it has a volatile write cache |
//! | NVMe | Identify Namespace (CNS 0), descriptors (CNS 3) | size; sysfs's `wwid` is one of UUID, NGUID, EUI-64, or made of vendor, serial number, model and namespace |
//! | | all of these again by each of several controllers | the same |
//! | SCSI, SAS, SATA | INQUIRY | vendor, model |
//! | | page 0x80 | serial number |
//! | | page 0x83 | sysfs's `wwid` is one of the logical unit's designators |
//! | | caching mode page, if it has one | whether the volatile write cache is on |
//! | SATA | IDENTIFY DEVICE, past the kernel's translation | serial number, model, world-wide name, write cache |
//!
//! Several controllers can share an NVMe namespace (native multipath). For all of them, and in the folder of each, the
//! kernel shows one serial number and one model: those of the controller that came first. The kernel takes in a further
//! controller for the name of its subsystem and the identifiers of its namespace alone (drivers/nvme/host:
//! `nvme_init_subsystem`, `nvme_init_ns_head`). But serial number and model belong to the subsystem (NVMe, 5.17.2.1). A
//! controller that answers with others belongs to another subsystem, and could get whatever is written.
//!
//! Answers are hostile: every length is checked, and text must be printable ASCII. An answer that does not fit refuses
//! the device.
//!
//! Sources: NVM Express base specification 2.0, 5.17; SPC-4, 6.6 and 7.8; SBC-3, 6.5.5; ACS-3, 7.12.7;
//! drivers/nvme/host/sysfs.c and drivers/scsi/scsi_lib.c for how the kernel writes a `wwid`.

use super::identity::{Doubt, Node};
use crate::os::ioctl::{NvmeAnswers, ScsiAnswers};
use crate::registry::hex;

/// Answers, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Vendor, if devices of this kind have one.
    pub vendor: Option<String>,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Every world-wide identifier of the device, as the kernel writes them.
    pub wwids: Vec<String>,
    /// Size in bytes, if devices of this kind tell it.
    pub size_bytes: Option<u64>,
    /// Whether the device has a volatile write cache that is on, if it tells.
    pub volatile_cache: Option<bool>,
    /// In what the device's answers contradict each other.
    pub contradictions: Vec<String>,
}

/// Understands the answers of an NVMe namespace.
///
/// # Errors
/// What is malformed.
pub fn nvme(answers: &NvmeAnswers) -> Result<Answer, String> {
    let (controller, namespace) = (&answers.controller[..], &answers.namespace[..]);
    if controller.len() != 4096 || namespace.len() != 4096 {
        return Err("an Identify structure is not 4096 bytes".into());
    }
    let (serial, model) = (&controller[4..24], &controller[24..64]);
    // NGUID and EUI-64; zeros mean that there is none.
    let mut identifiers = vec![(2, &namespace[104..120]), (1, &namespace[120..128])];
    let mut rest = &answers.descriptors[..];
    while let [kind, len, _, _, after @ ..] = rest {
        if *len == 0 {
            break;
        }
        let id = after.get(..usize::from(*len)).ok_or("an identification descriptor is longer than its list")?;
        if matches!((*kind, *len), (1, 8) | (2 | 3, 16)) {
            identifiers.push((*kind, id));
        }
        rest = &after[id.len()..];
    }
    let mut wwids: Vec<String> = Vec::new();
    for (kind, id) in identifiers {
        let h = hex(id);
        wwids.extend(match (kind, id.iter().any(|b| *b != 0)) {
            (_, false) => None,
            (3, true) => Some(format!("uuid.{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])),
            (_, true) => Some(format!("eui.{h}")),
        });
    }
    let vendor = u16::from_le_bytes([controller[0], controller[1]]);
    let made_of = [hex(trim(serial, false)), hex(trim(model, false))];
    wwids.push(format!("nvme.{vendor:04x}-{}-{}-{:08x}", made_of[0], made_of[1], answers.nsid));

    // NSZE, and the data size of the format in use (FLBAS, LBAF).
    let blocks = u64::from_le_bytes(std::array::from_fn(|i| namespace[i]));
    let format = usize::from(namespace[26] & 0x0F) | usize::from(namespace[26] & 0x60) >> 1;
    let shift = u32::from(namespace[128 + 4 * format + 2]);
    let size = 1u64.checked_shl(shift).and_then(|block| blocks.checked_mul(block));
    Ok(Answer {
        vendor: None,
        model: plain("model", model)?,
        serial: plain("serial number", serial)?,
        wwids,
        size_bytes: Some(size.ok_or("its size cannot be")?),
        volatile_cache: Some(controller[525] & 1 != 0),
        contradictions: Vec::new(),
    })
}

/// Understands the answers of a SCSI disk.
///
/// # Errors
/// What is malformed.
pub fn scsi(answers: &ScsiAnswers) -> Result<Answer, String> {
    let standard = answers.standard.get(..36).ok_or("the INQUIRY data are shorter than 36 bytes")?;
    // Peripheral qualifier and type: 0 is a direct access block device that is connected.
    if standard[0] != 0 {
        return Err(format!("it says to be of peripheral type {:#04x}, not a disk", standard[0]));
    }
    let mut answer = Answer {
        vendor: Some(plain("vendor", &standard[8..16])?),
        model: plain("model", &standard[16..32])?,
        serial: plain("serial number", page(&answers.serial, 0x80)?)?,
        wwids: designators(page(&answers.designators, 0x83)?)?,
        size_bytes: None,
        volatile_cache: answers.caching.as_deref().and_then(write_cache_enabled),
        contradictions: Vec::new(),
    };
    if let Some(identify) = &answers.ata {
        ata(&mut answer, identify)?;
    }
    Ok(answer)
}

/// The content of a page of vital product data, after its header of page number and length.
fn page(bytes: &[u8], number: u8) -> Result<&[u8], String> {
    let [_, found, high, low, content @ ..] = bytes else { return Err(format!("page {number:#04x} is cut short")) };
    if *found != number {
        return Err(format!("it answers page {found:#04x} when asked for {number:#04x}"));
    }
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    content.get(..len).ok_or_else(|| format!("page {number:#04x} is cut short"))
}

/// The serial number in a page 0x80 as sysfs shows it.
///
/// # Errors
/// What is malformed.
pub fn serial_page(bytes: &[u8]) -> Result<String, String> {
    plain("serial number", page(bytes, 0x80)?)
}

/// Designators of the logical unit, as `scsi_vpd_lun_id` writes them.
fn designators(mut rest: &[u8]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    while let [_, kind, _, len, after @ ..] = rest {
        let id = after.get(..usize::from(*len)).ok_or("a designator is longer than its page")?;
        // Association 0 is the logical unit; other designators are of its port or its target.
        if kind & 0x30 == 0 {
            match kind & 0x0F {
                1 => found.extend(plain("designator", id).ok().map(|t| format!("t10.{t}"))),
                2 => found.push(format!("eui.{}", hex(id))),
                3 => found.push(format!("naa.{}", hex(id))),
                8 => found.extend(plain("designator", id)),
                _ => {}
            }
        }
        rest = &after[id.len()..];
    }
    if rest.is_empty() { Ok(found) } else { Err("page 0x83 ends inside a designator".into()) }
}

/// Bit WCE of the caching page behind a mode parameter header (10) and its block descriptors.
fn write_cache_enabled(bytes: &[u8]) -> Option<bool> {
    let descriptors = usize::from(u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]));
    let page = bytes.get(8 + descriptors..)?.get(..3)?;
    (page[0] & 0x3F == 8).then_some(page[2] & 4 != 0)
}

/// Compares the data of IDENTIFY DEVICE with the translated answers, and takes the state of the write cache from the
/// data.
fn ata(answer: &mut Answer, identify: &[u8]) -> Result<(), String> {
    if identify.len() != 512 {
        return Err("the data of IDENTIFY DEVICE are not 512 bytes".into());
    }
    let word = |n: usize| u16::from_le_bytes([identify[2 * n], identify[2 * n + 1]]);
    let text = |words: std::ops::Range<usize>| words.flat_map(|n| word(n).to_be_bytes()).collect::<Vec<u8>>();
    let serial = plain("ATA serial number", &text(10..20))?;
    let model = plain("ATA model", &text(27..47))?;
    // The translation shows the first 16 characters of the model.
    let short: String = model.chars().take(16).collect();
    if serial != answer.serial || short.trim_end() != answer.model {
        answer.contradictions.push(format!(
            "the disk says {model:?} {serial:?}, the kernel's translation {:?} {:?}",
            answer.model, answer.serial
        ));
    }
    // Word 87 bit 8: words 108 to 111 are a world-wide name.
    if word(87) & 0xC100 == 0x4100 {
        let name = format!("naa.{}", hex(&text(108..112)));
        if !answer.wwids.contains(&name) {
            let translated = answer.wwids.join(" ");
            answer.contradictions.push(format!("the disk says {name}, the kernel's translation {translated}"));
        }
    }
    answer.volatile_cache = Some(word(85) & 0x20 != 0);
    Ok(())
}

/// In what an answer differs from what sysfs shows of the node. `who` says in words who gave the answer.
pub fn compare(node: &Node, answer: &Answer, who: &str) -> Vec<Doubt> {
    let mut problems: Vec<Doubt> = answer.contradictions.iter().cloned().map(Doubt::Disagrees).collect();
    let mut differ = |what: &str, sysfs: Option<&str>, device: &str| {
        if sysfs.unwrap_or_default() != device {
            let sysfs = sysfs.unwrap_or("nothing");
            problems.push(Doubt::Disagrees(format!("{what} is {sysfs} by sysfs and {device:?} by {who}")));
        }
    };
    if let Some(vendor) = &answer.vendor {
        differ("vendor", node.vendor.as_deref(), vendor);
    }
    differ("model", node.model.as_deref(), &answer.model);
    differ("serial number", node.serial.as_deref(), &answer.serial);
    if let Some(size) = answer.size_bytes {
        differ("size", Some(&node.size_bytes.to_string()), &size.to_string());
    }
    if !node.wwid.as_ref().is_some_and(|wwid| answer.wwids.contains(wwid)) {
        let sysfs = node.wwid.as_deref().unwrap_or("nothing");
        let device = answer.wwids.join(" ");
        problems.push(Doubt::Disagrees(format!("identifier is {sysfs} by sysfs and one of {device:?} by {who}")));
    }
    if answer.volatile_cache == Some(true) && node.write_cache.as_deref() != Some("write back") {
        let mode = node.write_cache.as_deref().unwrap_or("nothing");
        let text = format!("by {who} its cache is on, and queue/write_cache says {mode:?}");
        problems.push(Doubt::CacheNotFlushed(text));
    }
    problems
}

/// Text of a fixed field: printable ASCII, without the spaces and NULs around it.
fn plain(what: &str, bytes: &[u8]) -> Result<String, String> {
    let bytes = trim(bytes, true);
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().all(|b| matches!(b, 0x20..=0x7E)) => Ok(text.to_owned()),
        _ => Err(format!("its {what} is not plain text")),
    }
}

fn trim(bytes: &[u8], both: bool) -> &[u8] {
    let filler = |b: &u8| matches!(b, b' ' | 0);
    let end = bytes.len() - bytes.iter().rev().take_while(|b| filler(b)).count();
    let start = if both { bytes[..end].iter().take_while(|b| filler(b)).count() } else { 0 };
    &bytes[start..end]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::Transport;
    use proptest::prelude::*;

    fn identify() -> NvmeAnswers {
        let (mut controller, mut namespace) = (vec![0; 4096], vec![0; 4096]);
        controller[..2].copy_from_slice(&0x144du16.to_le_bytes());
        controller[4..24].copy_from_slice(b"S4EWNX0R512345      ");
        controller[24..64].copy_from_slice(format!("{:<40}", "SAMSUNG X").as_bytes());
        controller[525] = 7;
        namespace[..8].copy_from_slice(&1000u64.to_le_bytes());
        namespace[26] = 0x21; // format 17 of 64: 1 + 16
        namespace[128 + 4 * 17 + 2] = 12;
        namespace[120..128].copy_from_slice(&[0, 0x25, 0x38, 0x5b, 0x21, 0xb0, 0xa6, 0xc1]);
        let descriptors = [&[1, 8, 0, 0][..], &namespace[120..128], &[3, 16, 0, 0], &[0xab; 16], &[0; 16]].concat();
        NvmeAnswers { nsid: 1, controller, namespace, descriptors }
    }

    #[test]
    fn an_nvme_namespace_says_who_it_is() {
        let answer = nvme(&identify()).unwrap();
        assert_eq!((answer.serial.as_str(), answer.model.as_str()), ("S4EWNX0R512345", "SAMSUNG X"));
        assert_eq!((answer.size_bytes, answer.volatile_cache), (Some(4_096_000), Some(true)));
        for wwid in [
            "eui.0025385b21b0a6c1",
            "uuid.abababab-abab-abab-abab-abababababab",
            "nvme.144d-533445574e583052353132333435-53414d53554e472058-00000001",
        ] {
            assert!(answer.wwids.iter().any(|w| w == wwid), "{wwid}: {:?}", answer.wwids);
        }
    }

    /// A SATA disk as libata translates it.
    fn disk() -> ScsiAnswers {
        let mut standard = vec![0u8; 96];
        standard[8..32].copy_from_slice(b"ATA     ST4000NM000A-2HZ");
        let page = |n: u8, content: &[u8]| [&[0, n, 0, content.len() as u8][..], content].concat();
        let naa = [&[1, 3, 0, 8][..], &[0x50, 0, 0xc5, 0, 0xa1, 0xb2, 0xc3, 0xd5]].concat();
        // A port's designator is none of the disk's.
        let port = [&[1, 0x13, 0, 8][..], &[0x51; 8]].concat();
        let t10 = [&[2, 1, 0, 12][..], b"ATA     ABC "].concat();
        let mut ata = vec![0u8; 512];
        let mut put = |word: usize, text: &str| {
            for (i, pair) in text.as_bytes().chunks(2).enumerate() {
                ata[2 * (word + i)] = pair[1];
                ata[2 * (word + i) + 1] = pair[0];
            }
        };
        put(10, "            ZC1ABCDF");
        put(27, "ST4000NM000A-2HZ100                     ");
        ata[2 * 85] = 0x20;
        ata[2 * 87 + 1] = 0x41;
        for (i, byte) in naa[4..].iter().enumerate() {
            ata[2 * 108 + (i ^ 1)] = *byte;
        }
        ScsiAnswers {
            standard,
            serial: page(0x80, b"            ZC1ABCDF"),
            designators: page(0x83, &[naa, port, t10].concat()),
            caching: Some(vec![0, 18, 0, 0, 0, 0, 0, 0, 8, 0x12, 4, 0]),
            ata: Some(ata),
        }
    }

    #[test]
    fn a_scsi_disk_says_who_it_is() {
        let answer = scsi(&disk()).unwrap();
        assert_eq!(answer.vendor.as_deref(), Some("ATA"));
        assert_eq!((answer.model.as_str(), answer.serial.as_str()), ("ST4000NM000A-2HZ", "ZC1ABCDF"));
        assert_eq!(answer.wwids, ["naa.5000c500a1b2c3d5", "t10.ATA     ABC"]);
        assert_eq!(answer.volatile_cache, Some(true));
        let without = ScsiAnswers { ata: None, ..disk() };
        assert_eq!(scsi(&without).unwrap(), answer);
        assert_eq!(scsi(&ScsiAnswers { caching: None, ..without }).unwrap().volatile_cache, None);
    }

    #[test]
    fn an_ata_disk_that_contradicts_its_translation_is_noticed() {
        for byte in [2 * 16, 2 * 28, 2 * 109] {
            let mut changed = disk();
            changed.ata.as_mut().unwrap()[byte] ^= 1;
            assert_eq!(scsi(&changed).unwrap().contradictions.len(), 1, "{byte}");
        }
    }

    #[test]
    fn what_is_cut_short_or_not_text_is_an_error() {
        let broken: [&dyn Fn(&mut ScsiAnswers); 9] = [
            &|a| a.standard.truncate(35),
            &|a| a.standard[0] = 0x7f,
            &|a| a.standard[9] = b'\n',
            &|a| a.serial.truncate(3),
            &|a| a.serial[1] = 0x83,
            &|a| a.serial[3] = 255,
            &|a| a.designators[7] = 200,
            &|a| a.designators[3] -= 1,
            &|a| a.ata.as_mut().unwrap().truncate(511),
        ];
        for (i, change) in broken.iter().enumerate() {
            let mut answers = disk();
            change(&mut answers);
            assert!(scsi(&answers).is_err(), "{i}");
        }
        let broken: [&dyn Fn(&mut NvmeAnswers); 4] =
            [&|a| a.controller.truncate(4095), &|a| a.namespace.clear(), &|a| a.controller[6] = 0x1b, &|a| {
                a.namespace[128 + 4 * 17 + 2] = 60
            }];
        for (i, change) in broken.iter().enumerate() {
            let mut answers = identify();
            change(&mut answers);
            assert!(nvme(&answers).is_err(), "{i}");
        }
        let long = NvmeAnswers { descriptors: vec![2, 17, 0, 0, 1], ..identify() };
        assert!(nvme(&long).is_err());
    }

    #[test]
    fn every_difference_is_named() {
        let answer = scsi(&disk()).unwrap();
        let mut node = Node::bare("sda", Transport::Sata);
        node.vendor = Some("ATA".into());
        node.model = Some("ST4000NM000A-2HZ".into());
        node.serial = Some("ZC1ABCDF".into());
        node.wwid = Some("naa.5000c500a1b2c3d5".into());
        node.write_cache = Some("write back".into());
        assert_eq!(compare(&node, &answer, "the device"), []);
        let changes: [&dyn Fn(&mut Node); 5] = [
            &|n| n.vendor = None,
            &|n| n.model = Some("ST4000NM000A".into()),
            &|n| n.serial = None,
            &|n| n.wwid = Some("naa.5000c500a1b2c3d6".into()),
            &|n| n.write_cache = Some("write through".into()),
        ];
        for change in changes {
            let mut other = node.clone();
            change(&mut other);
            assert_eq!(compare(&other, &answer, "the device").len(), 1);
        }
        let sized = Answer { size_bytes: Some(512), ..answer };
        assert_eq!(compare(&node, &sized, "the device").len(), 1);
    }

    proptest! {
        #[test]
        fn any_answer_of_a_scsi_disk_is_survived(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 5),
            number in any::<bool>(),
        ) {
            let mut parts = parts.into_iter();
            let mut next = || parts.next().unwrap();
            let mut answers = ScsiAnswers {
                standard: next(), serial: next(), designators: next(), caching: Some(next()), ata: Some(next()),
            };
            let _ = scsi(&answers);
            // Past the first checks.
            let good = disk();
            answers.standard = good.standard;
            answers.serial = good.serial;
            if number && answers.designators.len() > 4 {
                answers.designators[1] = 0x83;
                answers.designators[2] = 0;
            }
            let _ = scsi(&answers);
            answers.ata.as_mut().unwrap().resize(512, 0);
            answers.designators = good.designators;
            let _ = scsi(&answers);
        }

        #[test]
        fn any_answer_of_an_nvme_namespace_is_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), whole in any::<bool>(), nsid in any::<u32>(),
        ) {
            let mut long = bytes.clone();
            if whole {
                long.resize(4096, bytes.first().copied().unwrap_or(0));
            }
            let _ = nvme(&NvmeAnswers { nsid, controller: long.clone(), namespace: long, descriptors: bytes.clone() });
            let _ = nvme(&NvmeAnswers { descriptors: bytes, ..identify() });
        }
    }
}
