//! Self-check: compares the tables with each other. Whether blocks hold what the tables say is the volume's check.

use rusqlite::Connection;

use super::{Error, Result};

/// Most findings that are reported.
const FINDINGS_MAX: usize = 100;

/// What must not exist: a sentence, and a query that returns the numbers to which it applies.
const RULES: &[(&str, &str)] = &[
    ("inode {} has another link count than names", "
        SELECT i.ino FROM inode i LEFT JOIN (SELECT ino, count(*) AS names FROM dentry GROUP BY ino) d USING(ino)
        WHERE i.mode & 61440 <> 16384 AND i.nlink <> ifnull(d.names, 0)"),
    ("folder {} has another link count than 2 and its folders", "
        SELECT i.ino FROM inode i
        LEFT JOIN (SELECT parent, count(*) AS folders FROM dentry WHERE kind = 16384 GROUP BY parent) d
        ON d.parent = i.ino
        WHERE i.mode & 61440 = 16384 AND i.nlink <> 0 AND i.nlink <> 2 + ifnull(d.folders, 0)"),
    ("folder {} is not in the folder it says", "
        SELECT i.ino FROM inode i
        LEFT JOIN (SELECT ino, count(*) AS names, max(parent) AS parent FROM dentry GROUP BY ino) d USING(ino)
        WHERE i.mode & 61440 = 16384 AND i.nlink <> 0 AND i.ino <> 1
        AND (d.names IS NOT 1 OR d.parent IS NOT i.parent)"),
    ("a name leads to inode {}, which does not exist or is of another kind", "
        SELECT d.ino FROM dentry d LEFT JOIN inode i USING(ino) WHERE i.mode & 61440 IS NOT d.kind"),
    ("names are in {}, which is not a folder with names", "
        SELECT DISTINCT d.parent FROM dentry d LEFT JOIN inode i ON i.ino = d.parent
        WHERE i.mode & 61440 IS NOT 16384 OR i.nlink = 0"),
    ("inode {} has another block count than its extents", "
        SELECT i.ino FROM inode i LEFT JOIN (SELECT ino, sum(blocks) AS blocks FROM extent GROUP BY ino) e USING(ino)
        WHERE i.blocks <> ifnull(e.blocks, 0)"),
    ("an extent belongs to inode {}, which is not a file", "
        SELECT DISTINCT e.ino FROM extent e LEFT JOIN inode i USING(ino) WHERE i.mode & 61440 IS NOT 32768"),
    ("the extent at address {} overlaps the one before it", "
        SELECT addr FROM (SELECT addr, lag(addr + blocks) OVER (ORDER BY addr) AS before FROM extent) WHERE before > addr"),
    ("an extent of inode {} overlaps the one before it", "
        SELECT ino FROM (SELECT ino, lblock,
        lag(lblock + blocks) OVER (PARTITION BY ino ORDER BY lblock) AS before FROM extent) WHERE before > lblock"),
    ("the extent at address {} has not one tag for each block", "
        SELECT e.addr FROM extent e LEFT JOIN tags t USING(addr)
        WHERE e.tags IS NOT NULL AND ifnull(nullif(length(e.tags), 0), ifnull(length(t.tags), 0)) <> 16 * e.blocks"),
    ("tags at address {} belong to no extent", "
        SELECT t.addr FROM tags t LEFT JOIN extent e USING(addr) WHERE e.tags IS NULL OR length(e.tags) <> 0"),
    ("the audit trail has no record before record {}", "
        SELECT seq FROM (SELECT seq, lag(seq, 1, 0) OVER (ORDER BY seq) AS before FROM audit) WHERE seq <> before + 1"),
    ("an extended attribute belongs to inode {}, which has none", "
        SELECT DISTINCT x.ino FROM xattr x LEFT JOIN inode i USING(ino) WHERE ifnull(i.flags, 0) & 1 = 0"),
];

/// What is wrong, one sentence each.
pub(super) fn self_check(conn: &Connection) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (sentence, query) in RULES {
        let mut select = conn.prepare(query)?;
        let mut rows = select.query([])?;
        loop {
            let row = match rows.next().map_err(Error::from) {
                // What this rule compares is partly lost; another rule may compare other tables.
                Err(error) if error.unreadable_page().is_some() => {
                    let unknown = sentence.replace("{}", "of some number");
                    findings.push(format!("it cannot be told whether {unknown}: {error}"));
                    break;
                }
                row => row?,
            };
            let Some(row) = row else { break };
            if findings.len() >= FINDINGS_MAX {
                return Ok(findings);
            }
            let number: i64 = row.get(0)?;
            findings.push(sentence.replace("{}", &number.to_string()));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::meta::schema::SCHEMA;

    const SOUND: &str = "
        INSERT INTO inode SELECT ino, mode, 0, 0, nlink, 0, parent, 0, 0, blocks, 0, 0, 0, 0, 0, 0, 0, 0, NULL FROM (
          SELECT 1 AS ino, 16877 AS mode, 3 AS nlink, 1 AS parent, 0 AS blocks
          UNION VALUES (2, 16877, 2, 1, 0), (3, 33188, 2, 0, 40));
        INSERT INTO dentry VALUES (1, 20, 2, 16384, 'd'), (1, 21, 3, 32768, 'f'), (2, 22, 3, 32768, 'g');
        INSERT INTO extent VALUES (3, 0, 2, 10, 1, 1, zeroblob(32)), (3, 7, 36, 20, 1, 3, zeroblob(0)),
          (3, 50, 2, 80, 0, 0, NULL);
        INSERT INTO tags VALUES (20, zeroblob(576));
        INSERT INTO audit VALUES (1, 'a'), (2, 'b'), (3, 'c');";

    fn findings(damage: &str) -> Vec<String> {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        conn.execute_batch(SOUND).unwrap();
        conn.execute_batch(damage).unwrap();
        self_check(&conn).unwrap()
    }

    #[test]
    fn sound_tables_have_no_findings() {
        assert_eq!(findings(""), Vec::<String>::new());
    }

    /// A query within a query runs once for each row: on a volume with many folders it does not end.
    #[test]
    fn no_rule_asks_anew_for_each_row() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        for (sentence, query) in RULES {
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let steps: Vec<String> = plan.query_map([], |row| row.get(3)).unwrap().map(|step| step.unwrap()).collect();
            assert!(!steps.iter().any(|step| step.contains("CORRELATED")), "{sentence}: {steps:?}");
            let scanned = |step: &String| step.starts_with("SCAN") && step.ends_with("LEFT-JOIN");
            assert!(!steps.iter().any(scanned), "{sentence}: {steps:?}");
        }
    }

    #[test]
    fn each_damage_is_found() {
        for (damage, finding) in [
            ("DELETE FROM dentry WHERE cookie = 22", "inode 3 has another link count"),
            ("UPDATE inode SET nlink = 2 WHERE ino = 1", "folder 1 has another link count"),
            ("UPDATE inode SET parent = 2 WHERE ino = 2", "folder 2 is not in the folder it says"),
            ("INSERT INTO dentry VALUES (2, 30, 2, 16384, 'e')", "folder 2 is not in the folder it says"),
            ("DELETE FROM dentry WHERE cookie = 20", "folder 2 is not in the folder it says"),
            ("INSERT INTO dentry VALUES (1, 30, 9, 32768, 'x')", "leads to inode 9"),
            ("UPDATE dentry SET kind = 4096 WHERE cookie = 22", "leads to inode 3"),
            ("UPDATE dentry SET parent = 3 WHERE cookie = 22", "names are in 3"),
            ("UPDATE inode SET blocks = 39 WHERE ino = 3", "inode 3 has another block count"),
            ("UPDATE extent SET ino = 2", "belongs to inode 2"),
            (
                "UPDATE extent SET addr = 19 WHERE addr = 10; UPDATE extent SET blocks = 3 WHERE addr = 19",
                "address 20 overlaps",
            ),
            ("UPDATE extent SET blocks = 8 WHERE addr = 10", "of inode 3 overlaps"),
            ("DELETE FROM tags", "address 20 has not one tag"),
            ("UPDATE extent SET tags = zeroblob(16) WHERE addr = 10", "address 10 has not one tag"),
            ("INSERT INTO tags VALUES (99, zeroblob(16))", "address 99 belong to no extent"),
            ("DELETE FROM audit WHERE seq = 2", "no record before record 3"),
            ("DELETE FROM audit WHERE seq = 1", "no record before record 2"),
            ("INSERT INTO xattr VALUES (3, 'user.a', 'b')", "inode 3, which has none"),
        ] {
            assert!(findings(damage).iter().any(|line| line.contains(finding)), "{damage}: {:?}", findings(damage));
        }
    }
}
