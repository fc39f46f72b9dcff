//! The keys that encrypt volumes, as people give them. What they give never goes further than this process:
//! it takes the data key out, or wraps a new one.

use crate::explain;
use crate::failure::{Exit, Failure};
use crate::view::{self, VolumeView};
use clap::{ArgGroup, Args};
use std::path::{Path, PathBuf};
use trivet_api::{Client, v1};
use trivet_crypto::DataKey;
use trivet_keys::{
    Identity, KeyHolder, KeyWrapper, Passphrase, Recipient, Secret, Source, SourceError, UnwrapError,
    WrappedKey, guard_process, new_data_key, read_secret, read_text,
};
use zeroize::Zeroizing;

/// The key of a volume that is encrypted already.
#[derive(Args, Debug, Default)]
#[command(group = ArgGroup::new("key_holder").multiple(false))]
pub(crate) struct KeyArgs {
    /// The key of an encrypted volume: a file of at least 32 random bytes
    #[arg(long, value_name = "FILE", group = "key_holder", help_heading = "Encryption")]
    key_file: Option<PathBuf>,
    /// The same from standard input, to its end
    #[arg(long, group = "key_holder", help_heading = "Encryption")]
    key_stdin: bool,
    /// The same from the environment variable of this name
    #[arg(long, value_name = "VAR", group = "key_holder", help_heading = "Encryption")]
    key_env: Option<String>,
    /// The passphrase of an encrypted volume from standard input
    #[arg(long, group = "key_holder", help_heading = "Encryption")]
    passphrase_stdin: bool,
    /// The identity of age that the volume was encrypted for, as age-keygen writes it
    #[arg(long, value_name = "FILE", group = "key_holder", help_heading = "Encryption")]
    identity_file: Option<PathBuf>,
}

/// The key of a volume that is to be encrypted.
#[derive(Args, Debug, Default)]
#[command(group = ArgGroup::new("key_source").multiple(false).requires("encrypt"))]
pub(super) struct NewKeyArgs {
    /// Its key: a file of at least 32 random bytes, such as `head -c 32 /dev/urandom` gives
    #[arg(long, value_name = "FILE", group = "key_source", help_heading = "Encryption")]
    key_file: Option<PathBuf>,
    /// The same from standard input, to its end
    #[arg(long, group = "key_source", help_heading = "Encryption")]
    key_stdin: bool,
    /// The same from the environment variable of this name
    #[arg(long, value_name = "VAR", group = "key_source", help_heading = "Encryption")]
    key_env: Option<String>,
    /// A passphrase from standard input
    #[arg(long, group = "key_source", help_heading = "Encryption")]
    passphrase_stdin: bool,
    /// A recipient of age (age1…): only the holder of its identity can unlock the volume
    #[arg(long, value_name = "RECIPIENT", group = "key_source", help_heading = "Encryption")]
    recipient: Option<Recipient>,
}

/// The key that shall unlock a volume from now on.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("new_key").multiple(false))]
pub(super) struct ReplacingKeyArgs {
    /// The new key: a file of at least 32 random bytes
    #[arg(long, value_name = "FILE", group = "new_key", help_heading = "New key")]
    new_key_file: Option<PathBuf>,
    /// The same from the environment variable of this name
    #[arg(long, value_name = "VAR", group = "new_key", help_heading = "New key")]
    new_key_env: Option<String>,
    /// A new passphrase from standard input; on the second line if the old one is read there too
    #[arg(long, group = "new_key", help_heading = "New key")]
    new_passphrase_stdin: bool,
    /// A recipient of age (age1…)
    #[arg(long, value_name = "RECIPIENT", group = "new_key", help_heading = "New key")]
    new_recipient: Option<Recipient>,
}

/// Somebody who can take data keys out and guard others in the same way.
pub(crate) trait KeyKeeper: KeyHolder + KeyWrapper {}

impl<T: KeyHolder + KeyWrapper> KeyKeeper for T {}

/// Who takes a data key out, and who guards it from then on.
pub(super) type Rewrapping = (Box<dyn KeyHolder>, Box<dyn KeyWrapper>);

impl KeyArgs {
    /// Who can take the data key out, if somebody was named.
    pub(crate) fn holder(&self, what: &str) -> Result<Option<Box<dyn KeyKeeper>>, Failure> {
        guard(what)?;
        if let Some(path) = &self.identity_file {
            let text = read(what, &Source::File(path.clone()), read_secret)?;
            let identity = Identity::parse(&text);
            let identity = identity.map_err(|error| {
                let next = "name a file that age-keygen has written";
                Failure::new(what, format!("{}: {error}", path.display()), next).exit(Exit::Usage)
            })?;
            return Ok(Some(Box::new(identity)));
        }
        if self.passphrase_stdin {
            return Ok(Some(Box::new(passphrase(what, first_line(read(what, &Source::Stdin, read_text)?))?)));
        }
        match key_source(self.key_file.as_ref(), self.key_stdin, self.key_env.as_ref()) {
            None => Ok(None),
            Some(source) => Ok(Some(Box::new(secret(what, &source)?))),
        }
    }
}

impl ReplacingKeyArgs {
    /// Whether one is named.
    pub(super) const fn is_given(&self) -> bool {
        let secret = self.new_key_file.is_some() || self.new_key_env.is_some();
        secret || self.new_passphrase_stdin || self.new_recipient.is_some()
    }

    /// Who takes the old key out, and who guards it from now on.
    pub(super) fn with(&self, old: &KeyArgs, what: &str) -> Result<Rewrapping, Failure> {
        guard(what)?;
        if old.passphrase_stdin && self.new_passphrase_stdin {
            let lines = read(what, &Source::Stdin, read_text)?;
            let old = passphrase(what, first_line(Zeroizing::new(lines.to_vec())))?;
            let rest = lines.iter().position(|&byte| byte == b'\n').map_or(lines.len(), |at| at + 1);
            let new = passphrase(what, first_line(Zeroizing::new(lines[rest..].to_vec())))?;
            return Ok((Box::new(old), Box::new(new)));
        }
        let Some(holder) = old.holder(what)? else {
            let next = "give it: trivet volume rekey --help lists how";
            return Err(Failure::new(what, "its present key was not given", next).exit(Exit::Usage));
        };
        let wrapper: Box<dyn KeyWrapper> = if let Some(recipient) = self.new_recipient {
            Box::new(recipient)
        } else if self.new_passphrase_stdin {
            Box::new(passphrase(what, first_line(read(what, &Source::Stdin, read_text)?))?)
        } else {
            let source = key_source(self.new_key_file.as_ref(), false, self.new_key_env.as_ref());
            match source {
                Some(source) => Box::new(secret(what, &source)?),
                None => {
                    let next = "give it, such as with --new-key-file FILE; or say --data, to have the data \
                                encrypted anew under another data key";
                    return Err(Failure::new(what, "no new key was given", next).exit(Exit::Usage));
                }
            }
        };
        Ok((holder, wrapper))
    }
}

/// A data key for a new volume, and as it is to be stored.
pub(super) fn new_key(name: &str, arguments: &NewKeyArgs) -> Result<(DataKey, WrappedKey), Failure> {
    let what = format!("cannot make volume '{name}'");
    guard(&what)?;
    let source = key_source(arguments.key_file.as_ref(), arguments.key_stdin, arguments.key_env.as_ref());
    let wrapper: Box<dyn KeyWrapper> = match (source, arguments.recipient) {
        (Some(source), _) => Box::new(secret(&what, &source)?),
        (None, Some(recipient)) => Box::new(recipient),
        (None, None) => Box::new(passphrase(&what, first_line(read(&what, &Source::Stdin, read_text)?))?),
    };
    let failed = |error| Failure::new(&what, error, "");
    let key = new_data_key().map_err(failed)?;
    let wrapped = wrapper.wrap(&key).map_err(failed)?;
    Ok((key, wrapped))
}

/// A volume's data key, and how it is stored.
pub(crate) async fn unlock(
    client: &Client,
    dir: &Path,
    name: &str,
    what: &str,
    holder: &dyn KeyHolder,
) -> Result<(DataKey, WrappedKey), Failure> {
    let status = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
    let status = status.map_err(|error| explain::api(dir, what, &error))?;
    let Some(encryption) = status.encryption else {
        let cause = format!("volume '{name}' is not encrypted");
        return Err(Failure::new(what, cause, "leave the key out").exit(Exit::Usage));
    };
    let wrapped = WrappedKey::parse(&encryption.wrapped_key).map_err(|error| {
        let next = format!("if its deletion has begun, go on with it: trivet volume delete {name}");
        Failure::new(what, format!("its wrapped key cannot be read: {error}"), next).exit(Exit::Data)
    })?;
    let key = holder.unwrap(&wrapped).map_err(|error| {
        let next = match &error {
            UnwrapError::Method { .. } => "give that instead: trivet volume attach --help lists how",
            UnwrapError::Wrong(_) => "give the right one; nothing was touched",
        };
        Failure::new(what, error, next).exit(Exit::Usage)
    })?;
    Ok((key, wrapped))
}

/// The data key of a volume: if one was given for it, and where it is needed, what is encrypted needs one.
pub(crate) async fn key_for(
    client: &Client,
    dir: &Path,
    name: &str,
    what: &str,
    (given, needed): (&KeyArgs, bool),
) -> Result<Option<DataKey>, Failure> {
    if let Some(holder) = given.holder(what)? {
        return Ok(Some(unlock(client, dir, name, what, holder.as_ref()).await?.0));
    }
    if !needed {
        return Ok(None);
    }
    let status = client.get_volume(v1::GetVolumeRequest { name: name.to_owned() }).await;
    let status = status.map_err(|error| explain::api(dir, what, &error))?;
    if status.encryption.is_none() {
        return Ok(None);
    }
    let cause = format!("volume '{name}' is encrypted, and its key was not given");
    let next = "give it, such as with --key-file FILE; nothing was touched";
    Err(Failure::new(what, cause, next).exit(Exit::Usage))
}

/// Other volumes whose data key is that of this one, its clones and parents, in so many words.
pub(super) async fn sharers(client: &Client, dir: &Path, volume: &VolumeView) -> Result<String, Failure> {
    let Some(encryption) = &volume.encryption else { return Ok(String::new()) };
    let status = client.get_status(v1::GetStatusRequest {}).await;
    let status = status.map_err(|error| explain::api(dir, "cannot look for its clones", &error))?;
    let others = status.volumes.into_iter().map(view::volume).collect::<Result<Vec<_>, _>>()?;
    let shares = |other: &&VolumeView| {
        let key = other.encryption.as_ref().map(|encryption| &encryption.key);
        other.name != volume.name && key == Some(&encryption.key)
    };
    let names: Vec<String> = others.iter().filter(shares).map(|other| format!("'{}'", other.name)).collect();
    Ok(names.join(", "))
}

/// This process is about to hold a key.
fn guard(what: &str) -> Result<(), Failure> {
    guard_process().map(drop).map_err(|error| explain::system(what, Path::new("/proc/self"), &error))
}

fn key_source(file: Option<&PathBuf>, stdin: bool, variable: Option<&String>) -> Option<Source> {
    let stdin = stdin.then_some(Source::Stdin);
    file.cloned().map(Source::File).or(stdin).or(variable.cloned().map(Source::Environment))
}

type Read = fn(&Source) -> Result<Zeroizing<Vec<u8>>, SourceError>;

fn read(what: &str, source: &Source, read: Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    read(source).map_err(|error| Failure::new(what, error, "name one that holds the key").exit(Exit::Usage))
}

fn secret(what: &str, source: &Source) -> Result<Secret, Failure> {
    Secret::new(read(what, source, read_secret)?).ok_or_else(|| {
        let cause = format!("{source} holds fewer than {} bytes", Secret::BYTES_MIN);
        let next = "make a key: head -c 32 /dev/urandom > FILE; or use --passphrase-stdin";
        Failure::new(what, cause, next).exit(Exit::Usage)
    })
}

fn passphrase(what: &str, text: Zeroizing<Vec<u8>>) -> Result<Passphrase, Failure> {
    Passphrase::new(text).ok_or_else(|| {
        let cause = format!("the passphrase has fewer than {} bytes", Passphrase::BYTES_MIN);
        Failure::new(what, cause, "choose a longer one").exit(Exit::Usage)
    })
}

fn first_line(mut text: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if let Some(end) = text.iter().position(|&byte| byte == b'\n') {
        text.truncate(end);
    }
    text
}
