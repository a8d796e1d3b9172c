//! What the registry says of a device, as far as an approval rests on it.

use serde::Serialize;

use crate::registry::Date;

/// What the registry says of an approved device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApprovedEntry {
    /// Id of the entry.
    pub registry_id: String,
    /// Id of the site.
    pub site: String,
    /// The site's name.
    pub site_name: String,
    /// The site's country.
    pub country: String,
    /// The site's owner.
    pub owner: String,
    /// The site's administrator.
    pub administrator: String,
    /// Jurisdictions that can compel its operator.
    pub jurisdictions: Vec<String>,
    /// Day of the site's last inspection.
    pub inspected: Date,
    /// Last day on which the site's inspection counts.
    pub inspection_valid_until: Date,
    /// Digest of the identity that the entry requires and the device showed.
    #[serde(skip)]
    pub identity_digest: [u8; 32],
}
