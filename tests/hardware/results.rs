//! What came out: results as they come, and those that did not.

use std::collections::BTreeMap;

use crate::tables::Tables;

/// The results so far. One that has failed once stays failed.
pub struct Results<'a> {
    tables: &'a Tables,
    /// Whether a result is ok.
    outcome: BTreeMap<String, bool>,
    /// How many did not come.
    missing: usize,
}

impl<'a> Results<'a> {
    /// No results yet.
    pub fn new(tables: &'a Tables) -> Self {
        Self { tables, outcome: BTreeMap::new(), missing: 0 }
    }

    /// Remembers and prints that a result is ok.
    pub fn ok(&mut self, name: &str) {
        println!("ok    {name:<34} {}", self.tables.meaning(name));
        self.outcome.entry(name.to_owned()).or_insert(true);
    }

    /// Remembers and prints that a result is not ok, and why.
    pub fn fail(&mut self, name: &str, detail: &str) {
        println!("FAIL  {name:<34} {}: {detail}", self.tables.meaning(name));
        self.outcome.insert(name.to_owned(), false);
    }

    /// Has what a case must leave, and did not, failed.
    pub fn miss(&mut self, case: &str) {
        for name in self.tables.expected(case) {
            if !self.outcome.contains_key(&name) {
                self.fail(&name, "the result did not come");
                self.missing += 1;
            }
        }
    }

    /// How many results there are.
    pub fn count(&self) -> usize {
        self.outcome.len()
    }

    /// How many have failed.
    pub fn failed(&self) -> usize {
        self.outcome.values().filter(|ok| !**ok).count()
    }

    /// How many did not come.
    pub fn missing(&self) -> usize {
        self.missing
    }
}
