//! The links between groups and KVM's TCE tables.
//!
//! KVM adds a link for one table and one group at a time. It removes all links of a group, or all links of a table, and
//! no single one. A group is added to KVM only together with its first table, and deleted with its last one: for a
//! group that never had a table the kernel warns when it is deleted (linux: virt/kvm/vfio.c,
//! kvm_spapr_tce_release_vfio_group).

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use dmaspace_core::door::Errno;

/// The calls that add a group, link it and delete it.
pub(super) trait GroupCalls<G> {
    /// KVM_DEV_VFIO_FILE_ADD.
    fn add(&self, group: G) -> Result<(), Errno>;
    /// KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE, with the table that is being linked.
    fn set(&self, group: G) -> Result<(), Errno>;
    /// KVM_DEV_VFIO_FILE_DEL.
    fn delete(&self, group: G) -> Result<(), Errno>;
}

/// The links that exist: by group, the numbers of its tables.
#[derive(Debug)]
pub(super) struct Links<G> {
    groups: HashMap<G, BTreeSet<u64>>,
}

impl<G> Default for Links<G> {
    fn default() -> Self {
        Self { groups: HashMap::new() }
    }
}

impl<G: Copy + Eq + Hash> Links<G> {
    /// Links a group and a table. The kernel counts links, so a link that exists is not made again.
    pub(super) fn link(&mut self, calls: &impl GroupCalls<G>, group: G, table: u64) -> Result<(), Errno> {
        match self.groups.get(&group) {
            Some(tables) if tables.contains(&table) => return Ok(()),
            Some(_) => calls.set(group)?,
            None => {
                calls.add(group)?;
                if let Err(errno) = calls.set(group) {
                    // KVM deletes a group without a warning once it has tried to link it.
                    let _ = calls.delete(group);
                    return Err(errno);
                }
            }
        }
        self.groups.entry(group).or_default().insert(table);
        Ok(())
    }

    /// Deletes a group. `ENOENT` counts as success: KVM does not have the group.
    pub(super) fn unlink(&mut self, calls: &impl GroupCalls<G>, group: G) -> Result<(), Errno> {
        if !self.groups.contains_key(&group) {
            return Ok(());
        }
        match calls.delete(group) {
            Ok(()) | Err(Errno::ENOENT) => {
                self.groups.remove(&group);
                Ok(())
            }
            refused => refused,
        }
    }

    /// Removes a table, which is closed already, and deletes the groups that had no other.
    pub(super) fn close(&mut self, calls: &impl GroupCalls<G>, table: u64) {
        self.groups.retain(|group, tables| {
            tables.remove(&table);
            if tables.is_empty() {
                if let Err(errno) = calls.delete(*group) {
                    log::warn!("KVM did not delete a group whose last TCE table was closed: {errno}");
                }
            }
            !tables.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Calls that are recorded, of which one may fail.
    #[derive(Default)]
    struct Recorded {
        calls: RefCell<Vec<(&'static str, u32)>>,
        fails: Option<(&'static str, Errno)>,
    }

    impl Recorded {
        fn failing(call: &'static str, errno: Errno) -> Self {
            Self { fails: Some((call, errno)), ..Self::default() }
        }

        fn call(&self, call: &'static str, group: u32) -> Result<(), Errno> {
            self.calls.borrow_mut().push((call, group));
            self.fails.filter(|(fails, _)| *fails == call).map_or(Ok(()), |(_, errno)| Err(errno))
        }

        fn take(&self) -> Vec<(&'static str, u32)> {
            self.calls.take()
        }
    }

    impl GroupCalls<u32> for Recorded {
        fn add(&self, group: u32) -> Result<(), Errno> {
            self.call("add", group)
        }

        fn set(&self, group: u32) -> Result<(), Errno> {
            self.call("set", group)
        }

        fn delete(&self, group: u32) -> Result<(), Errno> {
            self.call("delete", group)
        }
    }

    #[test]
    fn a_group_is_added_with_its_first_table_and_deleted_with_its_last() {
        let (calls, mut links) = (Recorded::default(), Links::default());
        links.link(&calls, 7, 1).expect("nothing fails");
        links.link(&calls, 7, 2).expect("nothing fails");
        links.link(&calls, 7, 2).expect("it is linked");
        assert_eq!(calls.take(), [("add", 7), ("set", 7), ("set", 7)]);
        links.close(&calls, 1);
        assert_eq!(calls.take(), []);
        links.close(&calls, 2);
        assert_eq!(calls.take(), [("delete", 7)]);
    }

    #[test]
    fn a_group_that_could_not_be_linked_is_deleted_unless_it_has_another_table() {
        let (calls, mut links) = (Recorded::default(), Links::default());
        let failing = Recorded::failing("set", Errno::EINVAL);
        assert_eq!(links.link(&failing, 7, 1), Err(Errno::EINVAL));
        assert_eq!(failing.take(), [("add", 7), ("set", 7), ("delete", 7)]);
        links.link(&calls, 7, 1).expect("nothing fails");
        assert_eq!(links.link(&failing, 7, 2), Err(Errno::EINVAL));
        assert_eq!(failing.take(), [("set", 7)]);
        links.close(&calls, 2);
        links.close(&calls, 1);
        assert_eq!(calls.take(), [("add", 7), ("set", 7), ("delete", 7)]);
    }

    #[test]
    fn a_group_that_leaves_is_deleted_with_all_its_links() {
        let (calls, mut links) = (Recorded::default(), Links::default());
        for table in [1, 2] {
            links.link(&calls, 7, table).expect("nothing fails");
        }
        calls.take();
        let busy = Recorded::failing("delete", Errno::EBUSY);
        assert_eq!(links.unlink(&busy, 7), Err(Errno::EBUSY));
        assert_eq!(links.unlink(&calls, 7), Ok(()));
        assert_eq!(links.unlink(&calls, 7), Ok(()));
        links.close(&calls, 1);
        assert_eq!(calls.take(), [("delete", 7)]);
    }
}
