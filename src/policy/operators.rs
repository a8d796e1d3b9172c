//! Whose host or disk it is, by what it shows: operators of clouds, with the law that can compel them.
//!
//! The table `SIGNS` has one row for each sign of an operator, and a test tries every row. What a host or a device
//! shows is a claim. A match is a strong reason to refuse, and says which operator and which law the incident is about.
//! The absence of a match proves nothing: the registry decides, by enrolment. Operators under French law are named too:
//! they are not the ministry that the registry is made for.
//!
//! An operator is accepted only when the signed policy lists it by this name among `owners` *and* `administrators`, and
//! its law among `jurisdictions`: the three predicates that hold for a site.
//!
//! Sources: cloud-init `tools/ds-identify`, systemd `src/basic/virt.c`, azure-vm-utils, the kernel's PCI and NVMe
//! tables.

use serde::Serialize;

use crate::probe::host::HostFacts;
use crate::probe::identity::Node;
use crate::registry::Policy;

/// Who operates what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Operator {
    /// Name, as a policy would list it.
    pub name: &'static str,
    /// Country whose law can compel the operator.
    pub law: &'static str,
}

/// An operator, and the evidence by which it was recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recognised {
    /// Who.
    #[serde(flatten)]
    pub operator: Operator,
    /// By what: the attribute and its value.
    pub evidence: String,
}

impl Recognised {
    /// Whether the policy lists the operator as owner and administrator, and its law.
    pub fn is_listed(&self, policy: &Policy) -> bool {
        let Operator { name, law } = self.operator;
        let lists = |list: &[String], value: &str| list.iter().any(|item| item == value);
        lists(&policy.owners, name) && lists(&policy.administrators, name) && lists(&policy.jurisdictions, law)
    }
}

impl std::fmt::Display for Recognised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Operator { name, law } = self.operator;
        write!(f, "{name}, whom the law of {law} can compel ({})", self.evidence)
    }
}

/// Where a sign is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// What the firmware of the host says, by the name of the attribute.
    Host(&'static str),
    /// Vendor of a PCI function: any function of the host, or the function that a device hangs on.
    Pci,
    /// Model of an NVMe device.
    Nvme,
    /// Vendor and model of a SCSI device, with a slash between them.
    Scsi,
    /// Name of an iSCSI target.
    Iscsi,
}

use Place::{Host, Iscsi, Nvme, Pci, Scsi};

const fn operator(name: &'static str, law: &'static str) -> Operator {
    Operator { name, law }
}

const AMAZON: Operator = operator("Amazon Web Services", "US");
const GOOGLE: Operator = operator("Google Cloud", "US");
const MICROSOFT: Operator = operator("Microsoft Azure", "US");
const ORACLE: Operator = operator("Oracle Cloud", "US");
const DIGITAL_OCEAN: Operator = operator("DigitalOcean", "US");
const AKAMAI: Operator = operator("Akamai (Linode)", "US");
const VULTR: Operator = operator("Vultr", "US");
const IBM: Operator = operator("IBM Cloud", "US");
const ALIBABA: Operator = operator("Alibaba Cloud", "CN");
const TENCENT: Operator = operator("Tencent Cloud", "CN");
const HUAWEI: Operator = operator("Huawei Cloud", "CN");
const SAMSUNG: Operator = operator("Samsung Cloud", "KR");
const TELEKOM: Operator = operator("T-Systems (Open Telekom Cloud)", "DE");
const SAP: Operator = operator("SAP Converged Cloud", "DE");
const HETZNER: Operator = operator("Hetzner", "DE");
const UPCLOUD: Operator = operator("UpCloud", "FI");
const EXOSCALE: Operator = operator("Exoscale", "AT");
const CLOUDSIGMA: Operator = operator("CloudSigma", "CH");
const SCALEWAY: Operator = operator("Scaleway", "FR");
const OUTSCALE: Operator = operator("3DS Outscale", "FR");
const OVH: Operator = operator("OVHcloud", "FR");

/// What operators' hosts and disks show. A sign is the beginning of a value; a sign that ends in `$` is the whole
/// value. Upper and lower case count as the same.
const SIGNS: [(Place, &str, Operator); 57] = [
    (Host("sys_vendor"), "Amazon EC2", AMAZON),
    (Host("bios_vendor"), "Amazon EC2", AMAZON),
    (Host("board_vendor"), "Amazon EC2", AMAZON),
    (Host("chassis_vendor"), "Amazon EC2", AMAZON),
    (Host("chassis_asset_tag"), "Amazon EC2", AMAZON),
    (Host("bios_version"), "4.11.amazon$", AMAZON),
    (Host("product_uuid"), "ec2", AMAZON),
    (Host("hypervisor_uuid"), "ec2", AMAZON),
    (Pci, "1d0f", AMAZON),
    (Nvme, "Amazon Elastic Block Store", AMAZON),
    (Nvme, "Amazon EC2 NVMe Instance Storage", AMAZON),
    (Iscsi, "iqn.1997-05.com.amazon:", AMAZON),
    (Host("product_name"), "Google Compute Engine", GOOGLE),
    (Host("product_name"), "Google$", GOOGLE),
    (Host("sys_vendor"), "Google$", GOOGLE),
    (Host("bios_vendor"), "Google$", GOOGLE),
    (Host("board_vendor"), "Google$", GOOGLE),
    (Host("product_serial"), "GoogleCloud-", GOOGLE),
    (Pci, "1ae0", GOOGLE),
    (Nvme, "nvme_card", GOOGLE),
    (Scsi, "Google/", GOOGLE),
    (Host("chassis_asset_tag"), "7783-7084-3265-9085-8269-3286-77", MICROSOFT),
    (Nvme, "MSFT NVMe Accelerator", MICROSOFT),
    (Nvme, "Microsoft NVMe Direct Disk", MICROSOFT),
    (Host("chassis_asset_tag"), "OracleCloud.com", ORACLE),
    (Scsi, "ORACLE/BlockVolume", ORACLE),
    (Iscsi, "iqn.2015-12.com.oracleiaas:", ORACLE),
    (Host("sys_vendor"), "DigitalOcean", DIGITAL_OCEAN),
    (Scsi, "DO/Volume", DIGITAL_OCEAN),
    (Host("sys_vendor"), "Linode", AKAMAI),
    (Host("sys_vendor"), "Akamai", AKAMAI),
    (Scsi, "Linode/Volume", AKAMAI),
    (Host("sys_vendor"), "Vultr", VULTR),
    (Host("chassis_asset_tag"), "ibmcloud", IBM),
    (Host("product_name"), "Alibaba Cloud ECS", ALIBABA),
    (Host("sys_vendor"), "Alibaba Cloud", ALIBABA),
    (Pci, "1ded", ALIBABA),
    (Nvme, "Alibaba Cloud Elastic Block Storage", ALIBABA),
    (Host("sys_vendor"), "Tencent Cloud", TENCENT),
    (Host("chassis_asset_tag"), "HUAWEICLOUD", HUAWEI),
    (Host("sys_vendor"), "Huawei Cloud", HUAWEI),
    (Host("chassis_asset_tag"), "Samsung Cloud Platform", SAMSUNG),
    (Host("chassis_asset_tag"), "OpenTelekomCloud", TELEKOM),
    (Host("chassis_asset_tag"), "SAP CCloud VM", SAP),
    (Host("sys_vendor"), "Hetzner", HETZNER),
    (Scsi, "HC/Volume", HETZNER),
    (Host("sys_vendor"), "UpCloud", UPCLOUD),
    (Scsi, "UpCloud/", UPCLOUD),
    (Host("product_name"), "Exoscale", EXOSCALE),
    (Host("product_name"), "CloudSigma", CLOUDSIGMA),
    (Host("sys_vendor"), "Scaleway", SCALEWAY),
    (Scsi, "SCW/", SCALEWAY),
    (Host("sys_vendor"), "3DS Outscale", OUTSCALE),
    (Host("product_name"), "3DS Outscale", OUTSCALE),
    (Scsi, "OUTSCALE/", OUTSCALE),
    (Host("sys_vendor"), "OVH", OVH),
    (Host("board_vendor"), "OVH", OVH),
];

/// The operator of the host, by the first sign that it shows.
pub fn of_host(host: &HostFacts) -> Option<Recognised> {
    let swapped = host.firmware.get("product_uuid").map(|uuid| first_group_swapped(uuid));
    SIGNS.iter().find_map(|(place, sign, operator)| match place {
        Host(attribute) => {
            let value = host.firmware.get(attribute)?;
            // The version of SMBIOS decides in which byte order the first group of a UUID is shown.
            let other = swapped.as_deref().filter(|_| *attribute == "product_uuid");
            let shows = fits(value, sign) || other.is_some_and(|other| fits(other, sign));
            shows.then(|| recognised(operator, &format!("the host's {attribute}"), value))
        }
        Pci => host
            .pci_vendors
            .iter()
            .find(|vendor| fits(vendor, sign))
            .map(|vendor| recognised(operator, "PCI functions of the host of vendor", vendor)),
        Nvme | Scsi | Iscsi => None,
    })
}

/// The operator of a device, by the first sign that it shows.
pub fn of_device(node: &Node) -> Option<Recognised> {
    let scsi = match (&node.vendor, &node.model) {
        (Some(vendor), Some(model)) => Some(format!("{vendor}/{model}")),
        _ => None,
    };
    let model = node.model.as_ref().filter(|_| node.vendor.is_none());
    SIGNS.iter().find_map(|(place, sign, operator)| {
        let (what, value) = match place {
            Host(_) => return None,
            Pci => ("PCI function", node.pci.as_ref()?),
            Nvme => ("model", model?),
            Scsi => ("vendor and model", scsi.as_ref()?),
            Iscsi => ("iSCSI target", node.iscsi_target.as_ref()?),
        };
        fits(value, sign).then(|| recognised(operator, &format!("{what} of {}", node.name), value))
    })
}

fn recognised(operator: &Operator, what: &str, value: &str) -> Recognised {
    Recognised { operator: *operator, evidence: format!("{what}: {value}") }
}

fn fits(value: &str, sign: &str) -> bool {
    match sign.strip_suffix('$') {
        Some(whole) => value.eq_ignore_ascii_case(whole),
        None => value.get(..sign.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(sign)),
    }
}

/// A UUID with the bytes of its first group the other way round.
fn first_group_swapped(uuid: &str) -> String {
    let group: Vec<char> = uuid.chars().take(8).collect();
    group.rchunks(2).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Transport;

    fn node(place: Place, value: &str) -> Node {
        let mut node = Node::bare("disk", Transport::Unknown);
        let value = value.to_owned();
        match place {
            Host(_) => {}
            Pci => node.pci = Some(format!("{value}:8061")),
            Nvme => node.model = Some(value),
            Iscsi => node.iscsi_target = Some(value),
            Scsi => {
                let (vendor, model) = value.split_once('/').unwrap_or_default();
                (node.vendor, node.model) = (Some(vendor.into()), Some(model.into()));
            }
        }
        node
    }

    #[test]
    fn every_sign_names_its_operator_and_its_law() {
        for (place, sign, operator) in SIGNS {
            let value = sign.trim_end_matches('$');
            let mut host = HostFacts::default();
            match place {
                Host(attribute) => {
                    host.firmware.insert(attribute, value.into());
                }
                Pci => host.pci_vendors.push(value.into()),
                _ => {}
            }
            let found = match place {
                Host(_) => of_host(&host),
                _ => of_device(&node(place, value)),
            };
            let found = found.map(|f| (f.operator, f.evidence.contains(value)));
            assert_eq!(found, Some((operator, true)), "{place:?} {sign}");
            if place == Pci {
                assert_eq!(of_host(&host).map(|f| f.operator), Some(operator));
            }
            assert_eq!(operator.law.len(), 2);
            if let Host(attribute) = place {
                assert!(attribute == "hypervisor_uuid" || crate::probe::host::FIRMWARE.contains(&attribute));
            }
        }
    }

    #[test]
    fn bare_metal_of_amazon_is_recognised() {
        let mut host = HostFacts::default();
        host.firmware.insert("sys_vendor", "Amazon EC2".into());
        host.firmware.insert("product_name", "m5.metal".into());
        assert_eq!(of_host(&host).map(|f| f.operator), Some(AMAZON));
        // By its UUID alone, in either byte order.
        for uuid in ["ec2e1916-9099-7caf-fd21-012345abcdef", "45e12aec-dcd1-b213-94ed-012345abcdef"] {
            let mut host = HostFacts::default();
            host.firmware.insert("product_uuid", uuid.into());
            assert_eq!(of_host(&host).map(|f| f.operator), Some(AMAZON), "{uuid}");
        }
    }

    #[test]
    fn ordinary_hardware_is_nobody_elses() {
        let mut host = HostFacts::default();
        host.firmware.insert("sys_vendor", "Dell Inc.".into());
        host.firmware.insert("product_name", "PowerEdge R760".into());
        host.pci_vendors = vec!["8086".into(), "144d".into()];
        assert_eq!(of_host(&host), None);
        assert_eq!(of_device(&node(Nvme, "SAMSUNG MZQL23T8HCLS-00A07")), None);
        assert_eq!(of_device(&node(Scsi, "ATA/ST4000NM000A")), None);
        assert_eq!(of_device(&Node::bare("sda", Transport::Sata)), None);
    }

    #[test]
    fn an_operator_is_listed_by_three_predicates() {
        let text = |t: &str| vec![t.to_owned()];
        let day = |year| crate::registry::Date::new(year, 1, 1).expect("a day");
        let mut policy = crate::policy::laboratory::registry_for(&[], day(2026), day(2027)).policy;
        policy.owners = text("3DS Outscale");
        policy.administrators = text("3DS Outscale");
        let found = recognised(&OUTSCALE, "x", "y");
        assert!(found.is_listed(&policy));
        policy.owners = text("Ministère de la Justice");
        assert!(!found.is_listed(&policy));
        policy.owners = text("3DS Outscale");
        policy.jurisdictions = text("DE");
        assert!(!found.is_listed(&policy));
    }
}
