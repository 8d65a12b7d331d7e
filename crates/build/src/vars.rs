//! Build arguments and variables: who sees which.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use dockerfile::{Arg, Instruction, Located, ParseErrorKind, expand::Expander};
use types::Platform;

use crate::error::{Error, Result};

/// Given to RUN without being declared, and then no part of a step's key.
const PROXIES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| *proxy == name || proxy.to_ascii_lowercase() == name)
}

/// What the request and the lines before the first FROM say.
pub(crate) struct Globals {
    escape: char,
    given: BTreeMap<String, Option<String>>,
    platform: BTreeMap<String, String>,
    /// Declared before the first FROM.
    declared: BTreeMap<String, Option<String>>,
    consumed: Mutex<BTreeSet<String>>,
}

/// The arguments that a stage has declared so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    args: Vec<(String, Option<String>)>,
}

impl Globals {
    /// # Errors
    /// A default that cannot be expanded.
    pub(crate) fn new(
        given: BTreeMap<String, Option<String>>,
        declarations: &[Located],
        escape: char,
        target: &Platform,
        target_stage: &str,
    ) -> Result<Self> {
        let host = Platform::host();
        let mut platform = BTreeMap::new();
        for (prefix, value) in [("TARGET", target), ("BUILD", &host)] {
            platform.insert(format!("{prefix}PLATFORM"), value.to_string());
            platform.insert(format!("{prefix}OS"), value.os.clone());
            platform.insert(format!("{prefix}ARCH"), value.architecture.clone());
            platform.insert(format!("{prefix}VARIANT"), value.variant.clone());
        }
        platform.insert("TARGETSTAGE".into(), target_stage.into());
        let declared = BTreeMap::new();
        let mut globals = Self { escape, given, platform, declared, consumed: Mutex::default() };
        for located in declarations {
            let Instruction::Arg(args) = &located.instruction else { continue };
            for arg in args {
                let default = globals.default(arg, located, |name| globals.for_from(name))?;
                let value = globals.take(&arg.name).or(default);
                globals.declared.insert(arg.name.clone(), value);
            }
        }
        Ok(globals)
    }

    fn default(
        &self,
        arg: &Arg,
        located: &Located,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<String>> {
        let Some(default) = &arg.default else { return Ok(None) };
        let expanded = Expander::new(self.escape, &lookup).text(default);
        expanded.map(Some).map_err(|source| Error::Expand {
            line: located.lines.start,
            source: ParseErrorKind::Expand(source),
        })
    }

    /// The value given for an argument, which counts as used.
    fn take(&self, name: &str) -> Option<String> {
        let value = self.given.get(name)?;
        self.consumed.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
        value.clone()
    }

    /// What FROM sees.
    pub(crate) fn for_from(&self, name: &str) -> Option<String> {
        match self.declared.get(name) {
            Some(value) => value.clone(),
            None => self.platform.get(name).cloned(),
        }
    }

    /// Replaces variables in FROM's words.
    ///
    /// # Errors
    /// A malformed expansion.
    pub(crate) fn expand_from(&self, text: &str, line: u32) -> Result<String> {
        let lookup = |name: &str| self.for_from(name);
        Expander::new(self.escape, &lookup)
            .text(text)
            .map_err(|source| Error::Expand { line, source: ParseErrorKind::Expand(source) })
    }

    pub(crate) fn escape(&self) -> char {
        self.escape
    }

    /// `SOURCE_DATE_EPOCH`, in seconds.
    ///
    /// # Errors
    /// A value that is no number.
    pub(crate) fn source_date_epoch(&self) -> Result<Option<i64>> {
        match self.take("SOURCE_DATE_EPOCH") {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| Error::Invalid(format!("invalid SOURCE_DATE_EPOCH: {text}"))),
        }
    }

    /// Arguments of the request that no ARG named.
    pub(crate) fn unused(&self) -> Vec<String> {
        let consumed = self.consumed.lock().unwrap_or_else(PoisonError::into_inner);
        let given = self.given.keys().filter(|name| !is_proxy(name));
        given.filter(|name| !consumed.contains(*name)).cloned().collect()
    }

    /// Proxy settings for RUN that the stage did not declare.
    pub(crate) fn proxies(&self, scope: &Scope) -> Vec<(String, String)> {
        let given = self.given.iter().filter(|(name, _)| is_proxy(name) && !scope.has(name));
        given.filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect()
    }
}

impl Scope {
    fn has(&self, name: &str) -> bool {
        self.args.iter().any(|(present, _)| present == name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.args.iter().rev().find(|(present, _)| present == name)?.1.clone()
    }

    /// Declares the arguments of one ARG: the request's value, else the default, else the value of a
    /// global argument of that name.
    ///
    /// # Errors
    /// A default that cannot be expanded.
    pub(crate) fn declare(
        &mut self,
        args: &[Arg],
        located: &Located,
        globals: &Globals,
        env: &[(String, String)],
    ) -> Result<()> {
        for arg in args {
            let default = globals.default(arg, located, |name| self.lookup(env, name))?;
            let value = globals
                .take(&arg.name)
                .or(default)
                .or_else(|| globals.declared.get(&arg.name).cloned().flatten())
                .or_else(|| globals.platform.get(&arg.name).cloned());
            self.args.retain(|(present, _)| *present != arg.name);
            self.args.push((arg.name.clone(), value));
        }
        Ok(())
    }

    /// ENV wins over ARG.
    pub(crate) fn lookup(&self, env: &[(String, String)], name: &str) -> Option<String> {
        let variable = env.iter().find(|(present, _)| present == name);
        variable.map(|(_, value)| value.clone()).or_else(|| self.get(name))
    }

    /// Declared arguments that have a value and are not hidden by a variable.
    pub(crate) fn visible(&self, env: &[(String, String)]) -> Vec<(String, String)> {
        let shown =
            self.args.iter().filter(|(name, _)| !env.iter().any(|(other, _)| other == name));
        shown.filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect()
    }
}
