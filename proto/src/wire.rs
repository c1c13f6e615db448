//! From the generated types to checked ones, and back.
//!
//! A message that does not convert is a fault of its sender, named by [`WireError`]; unknown enum values are such a
//! fault, never a default: a newer peer may mean something by them that must not be guessed.

use crate::ids::{Epoch, Gtrid, Incarnation, LogPosition, ParseIdError, Xid};
use crate::v1;

/// A message that cannot mean anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An identifier that is none.
    #[error(transparent)]
    Id(#[from] ParseIdError),
    /// A field that must be there is not.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// An enum value that this version does not know.
    #[error("the field {field} has the value {value}, which this version does not know")]
    UnknownEnum {
        /// The field.
        field: &'static str,
        /// Its number on the wire.
        value: i32,
    },
    /// A field with a value outside its limits.
    #[error("the field {field} is out of its limits: {why}")]
    Limit {
        /// The field.
        field: &'static str,
        /// The limit.
        why: &'static str,
    },
}

/// The field's message, or which field is missing.
///
/// # Errors
/// [`WireError::Missing`].
pub fn required<T>(field: Option<T>, name: &'static str) -> Result<T, WireError> {
    field.ok_or(WireError::Missing(name))
}

/// The enum's value, if this version knows it and it is not the unspecified one.
///
/// # Errors
/// [`WireError::UnknownEnum`].
pub fn known_enum<E: TryFrom<i32> + Default + PartialEq>(
    value: i32,
    field: &'static str,
) -> Result<E, WireError> {
    match E::try_from(value) {
        // The default of every enum of ours is its unspecified value, 0.
        Ok(known) if known != E::default() => Ok(known),
        Ok(_) | Err(_) => Err(WireError::UnknownEnum { field, value }),
    }
}

impl TryFrom<v1::Xid> for Xid {
    type Error = WireError;

    fn try_from(wire: v1::Xid) -> Result<Self, WireError> {
        Ok(Self { gtrid: wire.gtrid.parse()?, bqual: wire.bqual.parse()? })
    }
}

impl From<&Xid> for v1::Xid {
    fn from(xid: &Xid) -> Self {
        Self { gtrid: xid.gtrid.to_string(), bqual: xid.bqual.to_string() }
    }
}

/// The xid in a field that must hold one.
///
/// # Errors
/// Where it is missing or malformed.
pub fn xid(field: Option<v1::Xid>) -> Result<Xid, WireError> {
    required(field, "xid")?.try_into()
}

/// The gtrid in a text field.
///
/// # Errors
/// Where it is malformed.
pub fn gtrid(text: &str) -> Result<Gtrid, WireError> {
    Ok(text.parse()?)
}

/// The 16 bytes in a field.
///
/// # Errors
/// Where there are more or fewer.
pub fn bytes_16(bytes: &[u8], field: &'static str) -> Result<[u8; 16], WireError> {
    bytes.try_into().map_err(|_length| WireError::Limit { field, why: "16 bytes" })
}

impl TryFrom<v1::LogPosition> for LogPosition {
    type Error = WireError;

    fn try_from(wire: v1::LogPosition) -> Result<Self, WireError> {
        let epoch =
            Epoch::new(wire.epoch).ok_or(WireError::Limit { field: "epoch", why: "it begins at 1" })?;
        let incarnation = Incarnation::from_bytes(bytes_16(&wire.incarnation, "incarnation")?);
        Ok(Self { epoch, incarnation, sequence: wire.sequence })
    }
}

impl From<&LogPosition> for v1::LogPosition {
    fn from(position: &LogPosition) -> Self {
        Self {
            epoch: position.epoch.get(),
            incarnation: position.incarnation.as_bytes().to_vec(),
            sequence: position.sequence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enum_value_that_is_unknown_or_unspecified_is_an_error_that_names_the_field() {
        assert_eq!(known_enum::<v1::VoteKind>(1, "vote"), Ok(v1::VoteKind::Commit));
        for value in [0, 5, -1, i32::MAX] {
            let error = known_enum::<v1::VoteKind>(value, "vote").unwrap_err();
            assert_eq!(error, WireError::UnknownEnum { field: "vote", value });
        }
    }

    #[test]
    fn a_position_survives_the_wire_and_a_short_incarnation_does_not() {
        let position = LogPosition {
            epoch: Epoch::new(7).unwrap(),
            incarnation: Incarnation::from_bytes([9; 16]),
            sequence: u64::MAX,
        };
        let mut wire = v1::LogPosition::from(&position);
        assert_eq!(LogPosition::try_from(wire.clone()), Ok(position));
        wire.incarnation.pop();
        assert!(LogPosition::try_from(wire).is_err());
    }
}
